"""Attention heads: a head is a channel, silenced by zeroing the rows that make its values.

Whatever a head looks at, it answers zero when its values are zero, and no other head notices.
"""

from __future__ import annotations

from torch import fx

from worker.sanitizer.sites import dataflow, operators
from worker.sanitizer.sites.layers import Skipped, layer_name, parts
from worker.sanitizer.sites.ownership import owned_rows
from worker.sanitizer.sites.site import Site

MIN_HEADS = 2
# How far a softmax may lie before the product with the values: dropout, casts, a layer that lets the heads talk.
MAX_STEPS_FROM_SOFTMAX = 6


def of_product(node: fx.Node) -> tuple[Site | Skipped, str] | None:
    """The heads of an attention, or why they cannot be silenced, with the name of the layer of their values.

    None where the node is no attention.
    """
    values = _values(node)
    if values is None:
        return None
    found = dataflow.origin(values)
    if found is None:
        return Skipped(node.name, "the values of its heads are computed from more than one layer, or normed"), ""
    layer, numbers = found
    name = layer_name(layer).removesuffix("_weight")
    shape, axis = operators.shape(node) or (), numbers.dim() - 3
    if axis < 1 or shape[: axis + 1] != tuple(numbers.shape[: axis + 1]) or shape[axis] < MIN_HEADS:
        return Skipped(name, "its attention has no axis of heads"), ""
    runs = dataflow.runs(numbers, axis)
    owned = None if runs is None else owned_rows(layer, *runs)
    if owned is None:
        return Skipped(name, "its attention heads do not own rows of stored tensors"), ""
    if not parts(node):
        return Skipped(name, "its attention heads do not have the images in their first axis"), ""
    site = Site(name, "head", shape[axis], node.name, owned, owned, axis=axis, parts=parts(node))
    return site, layer_name(layer)


def _values(node: fx.Node) -> fx.Node | None:
    """The node of the values that an attention mixes, None where the node is no attention."""
    if node.target in operators.ATTENTIONS:
        values = node.args[2]
    elif node.target in operators.PRODUCTS and _is_of_softmax(node.args[0]):
        values = node.args[1]
    else:
        return None
    return values if isinstance(values, fx.Node) else None


def _is_of_softmax(weights: object) -> bool:
    for _ in range(MAX_STEPS_FROM_SOFTMAX):
        if not isinstance(weights, fx.Node) or weights.op != "call_function":
            return False
        if weights.target in operators.SOFTMAXES:
            return True
        if weights.target not in operators.IDENTITIES | operators.REARRANGEMENTS | {operators.aten.linear.default}:
            return False
        weights = weights.args[0]
    return False
