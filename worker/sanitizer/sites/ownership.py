"""Which slices of a layer's weight and bias make runs of its channels."""

from __future__ import annotations

from torch import fx

from worker.sanitizer.sites import operators
from worker.sanitizer.sites.operators import Layer, aten
from worker.sanitizer.sites.site import Rows


def owned_rows(layer: Layer, start: int, block: int, stride: int) -> tuple[Rows, ...] | None:
    """The slices of weight and bias that make such runs of channels; None where they are computed, not stored."""
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
