"""Gated linear units: one layer makes both the hidden channels and what multiplies them, in two halves."""

from __future__ import annotations

import operator

from worker.sanitizer.sites import dataflow, operators
from worker.sanitizer.sites.layers import layer_name, parts
from worker.sanitizer.sites.operators import Layer
from worker.sanitizer.sites.ownership import owned_rows
from worker.sanitizer.sites.site import Site


def of_layer(layer: Layer) -> Site | None:
    """The channels of the half that an activation follows: where it is zero the product is. None without one."""
    cut = operators.only_reader(layer.end)
    if cut is None or cut.target not in operators.SPLITS:
        return None
    for half in cut.users:
        settled = dataflow.settle(half)
        found = dataflow.origin(half) if half.target is operator.getitem and settled.is_activated else None
        if found is None or settled.at_zero:
            continue
        _, numbers = found
        axis = numbers.dim() - 1
        runs = dataflow.runs(numbers, axis)
        owned = None if runs is None or runs[1:] != (1, 1) else owned_rows(layer, *runs)
        if owned is not None and parts(settled.node):
            size, tap = numbers.shape[axis], settled.node
            return Site(layer_name(layer), "linear", size, tap.name, owned, owned, axis=axis, parts=parts(tap))
    return None
