"""Operators that write into their argument, written again as those that make a new value.

A graph that was exported to answer, not to be trained, may overwrite what its gradient needs.
"""

from __future__ import annotations

import torch
from torch import fx
from torch._ops import OpOverload

aten = torch.ops.aten

# They return their argument itself where nothing is dropped, which their schema does not say.
_RETURN_THEIR_ARGUMENT = frozenset({aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default})


def out_of_place(graph: fx.GraphModule) -> fx.GraphModule:
    """A graph of the same answers on the same tensors, without those writes that nobody else can see.

    Others can where the value shares its memory: it is a view, or a view of it was taken before.
    """
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph.graph, {}))
    position = {node: number for number, node in enumerate(copy.nodes)}
    for node in list(copy.nodes):
        made = _twin(node.target)
        written = node.args[0] if made is not None else None
        if not isinstance(written, fx.Node) or _shares(written, position, position[node]):
            continue
        later = [user for user in written.users if position[user] > position[node]]
        for user in later:
            user.replace_input_with(written, node)
        node.target = made
    return fx.GraphModule(graph, copy)


def _twin(target: object) -> OpOverload | None:
    """The operator that makes a new value of what this one writes into its first argument."""
    if not isinstance(target, OpOverload) or not target._schema.is_mutable:  # noqa: SLF001 - torch has no other way
        return None
    packet, overload = target._schema.name.partition("::")[2], target._overloadname  # noqa: SLF001
    found = getattr(getattr(aten, packet.removesuffix("_"), None), overload, None) if packet.endswith("_") else None
    return found if isinstance(found, OpOverload) and not found._schema.is_mutable else None  # noqa: SLF001


def _shares(value: fx.Node, position: dict[fx.Node, int], until: int) -> bool:
    """Whether a value is part of another, or had a part taken that is not its own before a place in the graph."""
    if value.op != "call_function" or not isinstance(value.target, OpOverload) or _is_view(value):
        return True
    return any(_is_view(user) for user in value.users if position[user] < until)


def _is_view(node: fx.Node) -> bool:
    if not isinstance(node.target, OpOverload):
        return True  # an element of several values, or something that is not known
    returns = node.target._schema.returns  # noqa: SLF001
    return node.target in _RETURN_THEIR_ARGUMENT or any(one.alias_info is not None for one in returns)
