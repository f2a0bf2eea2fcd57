"""Bounds from above for activations, one for each channel, as nodes of a graph: what a file that holds a graph carries.

Shapes: C channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor, fx

aten = torch.ops.aten

# Under this key a node's `meta` says what the file that it was read from calls its value. Only a value in float32 has
# it, so that a bound in float32 fits.
VALUE_NAME = "value_name"
# A bound that no activation reaches.
UNBOUNDED = torch.finfo(torch.float32).max


class Caps:
    """The bounds of one graph's values. A copy of both knows its own."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self._graph = graph
        # By the node whose value each bounds, the name of its buffer.
        self._names: dict[str, str] = {}

    def put(self, tap: str, axis: int, cap_C: Tensor) -> None:
        """Bound a node's value along an axis, for all who read it; another bound of it goes.

        Args:
            tap: The node's name.
            axis: Of the channels in its value.
            cap_C: The largest value of each channel, float32.
        """
        if tap not in self._names:
            self._names[tap] = _insert(self._graph, self._node(tap), axis, cap_C)
        bound = self._graph.get_buffer(self._names[tap])
        bound.copy_(cap_C.view_as(bound))

    def tensors(self) -> dict[str, Tensor]:
        """The bounds themselves by the names of their buffers, which no tensor of the file has."""
        return {name: self._graph.get_buffer(name) for name in self._names.values()}

    def copies(self) -> dict[str, Tensor]:
        """The bounds as they are now, by those names."""
        return {name: bound.clone() for name, bound in self.tensors().items()}

    def by_value(self) -> dict[str, Tensor]:
        """Copies of the bounds that bound anything, by what the file calls the value; each broadcasts over it."""
        bounds = {tap: self._graph.get_buffer(name) for tap, name in self._names.items()}
        return {
            value: bound.clone()
            for tap, bound in bounds.items()
            if (value := self.value_name(tap)) is not None and bool((bound < UNBOUNDED).any())
        }

    def lift(self) -> None:
        """Bound nothing any more."""
        for bound in self.tensors().values():
            bound.fill_(UNBOUNDED)

    def value_name(self, tap: str) -> str | None:
        """What the file calls the node's value, None where it has no name for it that a bound could be written for."""
        found = self._node(tap).meta.get(VALUE_NAME)
        return found if isinstance(found, str) else None

    def _node(self, tap: str) -> fx.Node:
        nodes: Iterable[fx.Node] = self._graph.graph.nodes
        return next(one for one in nodes if one.name == tap)


def _insert(graph: fx.GraphModule, node: fx.Node, axis: int, cap_C: Tensor) -> str:
    rank = len(node.meta["val"].shape)
    name = next(one for number in itertools.count() if not hasattr(graph, one := f"cap_{number}"))
    graph.register_buffer(name, torch.empty_like(cap_C).view(-1, *[1] * (rank - 1 - axis)))
    with graph.graph.inserting_after(node):
        bound = graph.graph.get_attr(name)
    with graph.graph.inserting_after(bound):
        capped = graph.graph.call_function(aten.minimum.default, (node, bound))
    node.replace_all_uses_with(capped, delete_user_cb=lambda user: user is not capped)
    graph.recompile()
    return name
