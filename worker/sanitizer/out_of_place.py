"""Operators that write into their argument, written again as those that make a new value.

A graph that was exported to answer, not to be trained, may overwrite what its gradient needs.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from worker.sanitizer.sites.operators import ACTIVATIONS, CONVOLUTIONS, ELEMENTWISE, OTHER_CONVOLUTIONS

aten = torch.ops.aten

# They always return memory of their own, unless they write into their argument. Others may, and are not asked: what a
# schema says of memory is not all of the truth.
_FRESH = (CONVOLUTIONS | OTHER_CONVOLUTIONS | ACTIVATIONS | ELEMENTWISE) | {
    *(aten.linear.default, aten.addmm.default, aten.mm.default, aten.bmm.default, aten.cat.default),
    *(aten.batch_norm.default, aten.layer_norm.default, aten.group_norm.default, aten.max_pool2d.default),
    *(aten.avg_pool2d.default, aten.softmax.int, aten.scaled_dot_product_attention.default),
}


def out_of_place(graph: fx.GraphModule) -> fx.GraphModule:
    """A graph of the same answers on the same tensors, without those writes that nobody else can see.

    Others could where the value may share its memory: it was not made anew, or something that may be a part of it was
    taken before. The graph's values must be known (`batching.propagate`).
    """
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph.graph, {}))
    position = {node: number for number, node in enumerate(copy.nodes)}
    for node in list(copy.nodes):
        made = _twin(node.target)
        if made is None or not _is_private(node, position):
            continue
        written = node.args[0]
        for user in [user for user in written.users if position[user] > position[node]]:
            user.replace_input_with(written, node)
        node.target = made
    return fx.GraphModule(graph, copy)


def _twin(target: object) -> OpOverload | None:
    """The operator that makes a new value of what this one writes into its first argument."""
    if not isinstance(target, OpOverload) or not _writes(target):
        return None
    packet = target._schema.name.partition("::")[2].removesuffix("_")  # noqa: SLF001 - torch has no other way
    found = getattr(getattr(aten, packet, None), target._overloadname, None)  # noqa: SLF001
    return found if found in _FRESH else None


def _is_private(node: fx.Node, position: dict[fx.Node, int]) -> bool:
    """Whether nobody else sees what the node writes, and a new value would be of the same type."""
    written = node.args[0]
    if not isinstance(written, fx.Node) or not _makes(written):
        return False
    kinds = {_dtype(source) for source in node.all_input_nodes}
    before = [user for user in written.users if position[user] < position[node]]
    return len(kinds) == 1 and None not in kinds and all(_makes(user) for user in before)


def _makes(node: fx.Node) -> bool:
    return node.target in _FRESH and isinstance(node.target, OpOverload) and not _writes(node.target)


def _writes(target: OpOverload) -> bool:
    return bool(target._schema.is_mutable)  # noqa: SLF001 - torch has no other way


def _dtype(node: fx.Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, Tensor) else None
