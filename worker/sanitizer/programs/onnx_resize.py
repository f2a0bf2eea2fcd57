"""ONNX Resize as what it is: along each axis a linear map of pixels, made once from the sizes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from worker.sanitizer.programs.onnx_builder import aten
from worker.sanitizer.programs.onnx_call import Call
from worker.sanitizer.programs.onnx_values import Value

_ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def resize(call: Call) -> Value:
    """Resize by nearest neighbours, linearly or by cubics, along axes whose extents do not depend on the batch."""
    builder, value = call.builder, call.input(0)
    mode = call.text("mode", "nearest")
    if mode not in {"nearest", "linear", "cubic"} or call.whole("antialias", 0):
        raise builder.refusal("resizes in a way that is not supported")
    if call.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise builder.refusal("resizes to sizes that are not given")
    axes = call.wholes("axes") or list(range(value.rank))
    scales = builder.numbers(call.input(2)) if call.has(2) and call.input(2).samples[0].numel() else None
    sizes = builder.dims(call.input(3)) if call.has(3) else None
    if (scales is None) == (sizes is None) or len(scales or sizes or []) != len(axes):
        raise builder.refusal("has not one scale or size for each axis")
    for position, axis in enumerate(axes):
        axis = call.front(value, axis)  # noqa: PLW2901 - counted from the front from here on
        if (scales and scales[position] == 1) or (sizes and sizes[position] == builder.shape(value)[axis]):
            continue
        old = builder.extent(value, axis)
        if sizes is not None:
            new = sizes[position]
            if not isinstance(new, int):
                raise builder.refusal("resizes along the batch")
            scale = new / old
        else:
            assert scales is not None
            scale = scales[position]
            new = math.floor(old * scale)
        if not 0 < new <= 1 << 14:
            raise builder.refusal("resizes to an absurd size")
        value = _along(call, value, axis, mode, _positions(call, old, new, scale))
    return value


def _positions(call: Call, old: int, new: int, scale: float) -> Tensor:
    """For each new pixel where it lies among the old ones."""
    pixels = torch.arange(new, dtype=torch.float64)
    kind = call.text("coordinate_transformation_mode", "half_pixel")
    if kind == "half_pixel" or (kind == "pytorch_half_pixel" and new > 1):
        return (pixels + 0.5) / scale - 0.5
    if kind == "half_pixel_symmetric":
        return old / 2 * (1 - new / (scale * old)) + (pixels + 0.5) / scale - 0.5
    if kind == "asymmetric":
        return pixels / scale
    if kind == "align_corners":
        return pixels * ((old - 1) / (new - 1) if new > 1 else 0)
    if kind == "pytorch_half_pixel":
        return pixels * 0
    raise call.builder.refusal("places pixels in a way that is not supported")


def _along(call: Call, value: Value, axis: int, mode: str, positions: Tensor) -> Value:
    builder, old = call.builder, call.builder.extent(value, axis)
    if mode == "nearest":
        index = builder.known(_nearest(call, positions).clamp(0, old - 1))
        return builder.call(aten.index_select.default, value, axis, index)
    weights = _linear(positions, old) if mode == "linear" else _cubic(call, positions, old)
    last = builder.call(aten.transpose.int, value, axis, -1)
    product = builder.call(aten.matmul.default, last, builder.known(weights.float().t().contiguous()))
    return builder.call(aten.transpose.int, product, axis, -1)


def _nearest(call: Call, positions: Tensor) -> Tensor:
    rounding = call.text("nearest_mode", "round_prefer_floor")
    if rounding not in _ROUNDINGS:
        raise call.builder.refusal("rounds in an unknown way")
    if rounding == "round_prefer_floor":
        nearest = (positions - 0.5).ceil()
    elif rounding == "round_prefer_ceil":
        nearest = (positions + 0.5).floor()
    else:
        nearest = positions.floor() if rounding == "floor" else positions.ceil()
    return nearest.to(torch.int64)


def _linear(positions: Tensor, old: int) -> Tensor:
    """The map (new, old); beyond the first and last pixel the value stays."""
    positions = positions.clamp(0, old - 1)
    return (1 - (positions[:, None] - torch.arange(old)).abs()).clamp(min=0)


def _cubic(call: Call, positions: Tensor, old: int) -> Tensor:
    """The map (new, old) by Keys' cubic; pixels beyond the edge are the edge's, or left out."""
    curve, leave_out = call.real("cubic_coeff_a", -0.75), call.whole("exclude_outside", 0)
    first = positions.floor().to(torch.int64) - 1
    weights = torch.zeros(len(positions), old, dtype=torch.float64)
    rows = torch.arange(len(positions))
    for step in range(4):
        taps = first + step
        far = (positions - taps).abs()
        near_part = (curve + 2) * far**3 - (curve + 3) * far**2 + 1
        far_part = curve * (far**3 - 5 * far**2 + 8 * far - 4)
        share = torch.where(far <= 1, near_part, far_part)
        if leave_out:
            share = share * ((taps >= 0) & (taps < old))
        weights.index_put_((rows, taps.clamp(0, old - 1)), share, accumulate=True)
    return weights / weights.sum(dim=1, keepdim=True) if leave_out else weights
