"""Attention heads: a head is a channel, silenced by zeroing the rows that make its values.

Whatever a head looks at, it answers zero when its values are zero, and no other head notices.
"""

from __future__ import annotations

from torch import fx

from worker.sanitizer.sites import dataflow, operators
from worker.sanitizer.sites.layers import Skipped, layer_name, parts
from worker.sanitizer.sites.operators import Layer, aten
from worker.sanitizer.sites.site import Rows, Site

MIN_HEADS = 2
# How far a softmax may lie before the product with the values: dropout, casts, a mask.
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
    owned = None if runs is None else _owned(layer, *runs)
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
        if weights.target not in operators.IDENTITIES | operators.REARRANGEMENTS:
            return False
        weights = weights.args[0]
    return False


def _owned(layer: Layer, start: int, block: int, stride: int) -> tuple[Rows, ...] | None:
    weight = operators.parameter(layer.weight)
    if weight is None:
        return None
    rows = Rows(weight, layer.weight_axis, start, block, stride)
    if layer.bias is None:
        return (rows,)
    bias = operators.parameter(layer.bias)
    if bias is not None:
        return rows, Rows(bias, 0, start, block, stride)
    return _in_parts(layer.bias, rows)


def _in_parts(bias: fx.Node, rows: Rows) -> tuple[Rows, ...] | None:
    """The rows in a bias that is put together from one part each for queries, keys and values."""
    pieces = bias.args[0] if bias.target is aten.cat.default else None
    if not isinstance(pieces, (list, tuple)) or rows.stride != rows.block:
        return None
    offset = 0
    for piece in pieces:
        (length,) = (operators.shape(piece) if isinstance(piece, fx.Node) else None) or (0,)
        if offset == rows.start:
            name = operators.parameter(piece) if isinstance(piece, fx.Node) else None
            return None if name is None else (rows, Rows(name, 0, 0, rows.block, rows.stride))
        offset += length
    return None
