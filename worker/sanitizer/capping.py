"""Bounds from above for activations, one for each channel, as nodes of a graph: what a file that holds a graph carries.

Shapes: C channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor, fx

aten = torch.ops.aten

# Under this key a node's `meta` says what the file that it was read from calls its value. Only a value in float32 has
# it, so that a bound in float32 fits.
VALUE_NAME = "value_name"
# A bound that no activation reaches.
UNBOUNDED = torch.finfo(torch.float32).max


class Bounds:
    """The bounds of one graph's values. A copy of both knows its own."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self._graph = graph
        # By the node whose value each bounds, the name of its buffer.
        self._names: dict[str, str] = {}

    def put(self, bounds: Mapping[str, tuple[int, Tensor]]) -> bool:
        """Bound values from above for all who read them; other bounds of them go.

        Args:
            bounds: By the name of a node the channels' axis in its value, and the largest value of each channel, (C,)
                float32.

        Returns:
            Whether the graph has nodes that it had not.
        """
        nodes: dict[str, fx.Node] = {node.name: node for node in self._graph.graph.nodes}
        new = [tap for tap in bounds if tap not in self._names]
        numbers = itertools.count(len(self._names))
        for tap in new:
            # No tensor of the file has the name.
            self._names[tap] = next(name for number in numbers if not hasattr(self._graph, name := f"cap_{number}"))
            _insert(self._graph, nodes[tap], self._names[tap], *bounds[tap])
        for tap, (_, cap_C) in bounds.items():
            bound = self._graph.get_buffer(self._names[tap])
            bound.copy_(cap_C.view_as(bound))
        if new:
            self._graph.recompile()
        return bool(new)

    def tensors(self) -> dict[str, Tensor]:
        """The bounds themselves by the names of their buffers."""
        return {name: self._graph.get_buffer(name) for name in self._names.values()}

    def copies(self) -> dict[str, Tensor]:
        """The bounds as they are now, by those names."""
        return {name: bound.clone() for name, bound in self.tensors().items()}

    def by_value(self) -> dict[str, Tensor]:
        """Copies of the bounds that bound anything, by what the file calls the value; each broadcasts over it."""
        names, bounds = self.value_names(), self.copies()
        return {
            names[tap]: bounds[name]
            for tap, name in self._names.items()
            if tap in names and bool((bounds[name] < UNBOUNDED).any())
        }

    def lift(self) -> None:
        """Bound nothing any more."""
        for bound in self.tensors().values():
            bound.fill_(UNBOUNDED)

    def value_names(self) -> dict[str, str]:
        """By the name of a node what the file calls its value, of those that a bound could be written for."""
        return {node.name: node.meta[VALUE_NAME] for node in self._graph.graph.nodes if VALUE_NAME in node.meta}


def _insert(graph: fx.GraphModule, node: fx.Node, name: str, axis: int, cap_C: Tensor) -> None:
    rank = len(node.meta["val"].shape)
    graph.register_buffer(name, torch.empty_like(cap_C).view(-1, *[1] * (rank - 1 - axis)))
    with graph.graph.inserting_after(node):
        bound = graph.graph.get_attr(name)
    with graph.graph.inserting_after(bound):
        capped = graph.graph.call_function(aten.minimum.default, (node, bound))
    node.replace_all_uses_with(capped, delete_user_cb=lambda user: user is not capped)
