"""Convolutions whose weight is standardised before it is used, as in norm-free networks and BiT.

The stored weight goes through a batch norm over itself, one row for each output channel: less its mean, over its
deviation, times a gain. So a row is zero where its gain is, and also where all that it is made of is.
"""

from __future__ import annotations

from torch import fx

from worker.sanitizer.sites import operators
from worker.sanitizer.sites.operators import Layer, aten
from worker.sanitizer.sites.site import Rows

_RESHAPES = frozenset({aten.view.default, aten.reshape.default, aten.clone.default, aten.contiguous.default})


def source(layer: Layer) -> Rows | None:
    """The stored rows that make the weight's: of the gain where one is stored, else of the weight before its norm.

    None where the weight is not standardised, or its rows are not made of stored rows of their own.
    """
    # Of its second argument reshape_as takes the shape alone.
    weight = layer.weight.args[0] if layer.weight.target is aten.reshape_as.default else layer.weight
    assert isinstance(weight, fx.Node)
    norm = _behind(weight, operators.REARRANGEMENTS)
    is_own = norm.target is aten.batch_norm.default and norm.args[5] is True and norm.args[2] is None
    num_channels = (operators.shape(layer.end) or ())[layer.axis]
    if layer.kind != "conv" or not is_own or layer.weight_axis != 0:
        return None
    scale, flat = norm.args[1], norm.args[0]
    if isinstance(scale, fx.Node) and (gain := _gain(scale, num_channels)) is not None:
        return Rows(gain)
    assert isinstance(flat, fx.Node)
    stored = _behind(flat, _RESHAPES)
    name, shape = operators.parameter(stored), operators.shape(stored) or (0,)
    # Read in order, (O, I, h, w) and (1, O, I * h * w) have the same rows.
    if name is None or (operators.shape(flat) or ())[:2] != (1, num_channels):
        return None
    if shape[:2] == (1, num_channels):
        return Rows(name, axis=1)
    return Rows(name) if shape[0] == num_channels else None


def _gain(node: fx.Node, num_channels: int) -> str | None:
    """The stored gain of each channel, behind constant factors."""
    found = _behind(node, operators.REARRANGEMENTS | {aten.mul.Tensor, aten.mul.Scalar})
    shape = operators.shape(found) or (0,)
    is_per_channel = shape[0] == num_channels and set(shape[1:]) <= {1}
    return operators.parameter(found) if is_per_channel else None


def _behind(node: fx.Node, targets: frozenset[object]) -> fx.Node:
    """What a chain of these operators, each of one value alone, began with."""
    while node.target in targets and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return node
