"""ONNX operators that move values around."""

from __future__ import annotations

import math
from typing import Any

import torch

from worker.sanitizer.programs.onnx_builder import aten
from worker.sanitizer.programs.onnx_call import Call, Handler
from worker.sanitizer.programs.onnx_resize import resize
from worker.sanitizer.programs.onnx_values import Dim, Extent, Value

_PAD_MODES = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def operators() -> dict[str, Handler]:
    """The operators of this module by name."""
    return {
        "Concat": _concat,
        "DepthToSpace": _depth_to_space,
        "Expand": _expand,
        "Flatten": _flatten,
        "Gather": _gather,
        "Pad": _pad,
        "Reshape": _reshape,
        "Resize": resize,
        "ScatterND": _scatter,
        "Slice": _slice,
        "SpaceToDepth": _space_to_depth,
        "Split": _split,
        "Squeeze": _squeeze,
        "Tile": lambda call: call.builder.call(
            aten.repeat.default, call.input(0), call.builder.dims(call.input(1))
        ),
        "Transpose": _transpose,
        "Trilu": _triangle,
        "Unsqueeze": _unsqueeze,
    }  # fmt: skip


def _concat(call: Call) -> Value:
    builder, parts = call.builder, [call.input(index) for index in range(len(call.inputs))]
    axis = call.axis(parts[0], 0)
    batch = Extent(builder.batches)
    if axis and call.declared_batch == 1 and any(part.rank and builder.shape(part)[0] == batch for part in parts):
        # A file made for one image has written that one into what it joins to each image, such as a class token.
        parts = [
            builder.call(aten.expand.default, part, [batch, *builder.shape(part)[1:]])
            if builder.shape(part)[0] == 1
            else part
            for part in parts
        ]
    return builder.call(aten.cat.default, parts, axis)


def _scatter(call: Call) -> Value:
    if call.text("reduction", "none") != "none":
        raise call.builder.refusal("combines what it scatters")
    builder, value, places = call.builder, call.input(0), call.input(1)
    columns = [builder.call(aten.select.int, places, -1, column) for column in range(builder.extent(places, -1))]
    return builder.call(aten.index_put.default, value, columns, call.input(2))


def _reshape(call: Call) -> Value:
    builder, value = call.builder, call.input(0)
    old, new = builder.shape(value), builder.dims(call.input(1))
    if not call.whole("allowzero", 0):
        if any(dim == 0 and index >= len(old) for index, dim in enumerate(new)):
            raise builder.refusal("copies an extent that its input does not have")
        new = [old[index] if dim == 0 else dim for index, dim in enumerate(new)]
    elif 0 in new:
        raise builder.refusal("makes a value without elements")
    # A file made for one batch size often has it written into its shapes, where a free one would have said -1.
    if new and old and new[0] == call.declared_batch and isinstance(old[0], Extent):
        new[0] = old[0]
    return reshaped(call, value, new)


def reshaped(call: Call, value: Value, sizes: list[Dim]) -> Value:
    """The value in another shape; at most one extent may be -1."""
    free = [index for index, size in enumerate(sizes) if isinstance(size, Extent)]
    if len(free) == 1 and -1 not in sizes:
        sizes = [-1 if index == free[0] else size for index, size in enumerate(sizes)]
    if sizes == call.builder.shape(value):
        return value
    return call.builder.call(aten.reshape.default, value, sizes)


def _flatten(call: Call) -> Value:
    value = call.input(0)
    axis = call.whole("axis", 1)
    axis += value.rank if axis < 0 else 0
    if axis == 1 and value.rank > 1:
        return call.builder.call(aten.flatten.using_ints, value, 1, -1)
    if not 0 <= axis <= value.rank:
        raise call.builder.refusal("flattens at an axis that its input does not have")
    sizes = call.builder.shape(value)
    behind = [size for size in sizes[axis:] if isinstance(size, int)]
    if len(behind) != len(sizes) - axis:
        return reshaped(call, value, [1, -1] if axis == 0 else [-1, math.prod(behind)])
    return reshaped(call, value, [-1, math.prod(behind)])


def _transpose(call: Call) -> Value:
    value = call.input(0)
    order = call.wholes("perm") or list(range(value.rank))[::-1]
    if sorted(order) == order:
        return value
    if value.weight is not None and order == [1, 0]:
        return Value(tuple(sample.t() for sample in value.samples), None, value.weight, not value.transposed)
    return call.builder.call(aten.permute.default, value, order)


def _squeeze(call: Call) -> Value:
    value, axes = call.input(0), call.axes(1)
    if axes is None:
        axes = [axis for axis, size in enumerate(call.builder.shape(value)) if size == 1]
    return call.builder.call(aten.squeeze.dims, value, [call.front(value, axis) for axis in axes])


def _unsqueeze(call: Call) -> Value:
    value, axes = call.input(0), call.axes(1) or []
    rank = value.rank + len(axes)
    if any(not -rank <= axis < rank for axis in axes):
        raise call.builder.refusal("inserts an axis that its output does not have")
    for axis in sorted(axis % rank for axis in axes):
        value = call.builder.call(aten.unsqueeze.default, value, axis)
    return value


def _expand(call: Call) -> Value:
    value, wanted = call.input(0), call.builder.dims(call.input(1))
    old = call.builder.shape(value)
    longest = max(len(old), len(wanted))
    ones: list[Dim] = [1] * longest
    old, wanted = [*ones[len(old) :], *old], [*ones[len(wanted) :], *wanted]
    sizes = [have if want == 1 else want for have, want in zip(old, wanted, strict=True)]
    if sizes == call.builder.shape(value):
        return value
    return call.builder.call(aten.expand.default, value, sizes)


def _slice(call: Call) -> Value:
    builder, value = call.builder, call.input(0)
    starts, ends = builder.dims(call.input(1)), builder.dims(call.input(2))
    axes = builder.ints(call.input(3)) if call.has(3) else list(range(len(starts)))
    steps = builder.ints(call.input(4)) if call.has(4) else [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise builder.refusal("has starts, ends, axes and steps of different lengths")
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis = call.front(value, axis)  # noqa: PLW2901 - counted from the front from here on
        if step > 0:
            value = builder.call(aten.slice.Tensor, value, axis, start, end, step)
        elif step < 0 and isinstance(start, int) and isinstance(end, int):
            size = builder.extent(value, axis)
            first = min(start + size if start < 0 else start, size - 1)
            last = max(end + size if end < 0 else end, -1)
            index = builder.known(torch.arange(first, last, step))
            value = builder.call(aten.index_select.default, value, axis, index)
        else:
            raise builder.refusal("has a step of zero, or goes backwards along the batch")
    return value


def _split(call: Call) -> list[Value]:
    builder, value = call.builder, call.input(0)
    axis = call.axis(value, 0)
    size, number = builder.extent(value, axis), len(call.node.outputs)
    sizes = builder.ints(call.input(1)) if call.has(1) else call.wholes("split")
    if sizes is None:
        part = -(-size // number)
        sizes = [min(part, max(size - part * index, 0)) for index in range(number)]
    if len(sizes) != number or sum(sizes) != size:
        raise builder.refusal("splits into parts that do not add up")
    ends = [sum(sizes[: index + 1]) for index in range(number)]
    return [
        builder.call(aten.slice.Tensor, value, axis, end - length, end) for end, length in zip(ends, sizes, strict=True)
    ]


def _gather(call: Call) -> Value:
    builder, value, index = call.builder, call.input(0), call.input(1)
    axis = call.axis(value, 0)
    number = builder.number(index)
    if number is not None and index.rank == 0:
        return builder.call(aten.select.int, value, axis, int(number))
    if index.is_known and value.rank == 1 and isinstance(builder.shape(value)[0], Extent):
        return _gather_within_images(call, value, index)
    if index.is_known:
        size = builder.extent(value, axis)
        index = builder.known(*(torch.where(sample < 0, sample + size, sample) for sample in index.samples))
    shape: list[Any] = [*builder.shape(value)[:axis], *builder.shape(index), *builder.shape(value)[axis + 1 :]]
    flat = index if index.rank == 1 else builder.call(aten.reshape.default, index, [-1])
    result = builder.call(aten.index_select.default, value, axis, flat)
    return result if index.rank == 1 else reshaped(call, result, shape)


def _gather_within_images(call: Call, value: Value, index: Value) -> Value:
    """Take from a whole batch that was laid out in one row, from each image at the same places: strides spelt out."""
    builder, patterns = call.builder, []
    for sample, places, batch in zip(value.samples, index.samples, builder.batches, strict=True):
        size = sample.numel() // batch
        pattern = places[:1]
        steps = torch.arange(len(places)).view(-1, *[1] * (places.dim() - 1)) * size
        is_within = pattern.numel() and int(pattern.min()) >= 0 and int(pattern.max()) < size
        if len(places) != batch or not is_within or not torch.equal(places, pattern + steps):
            raise builder.refusal("takes values of one image for another")
        patterns.append((size, pattern))
    (size, pattern), others = patterns[0], patterns[1:]
    if any(size != other_size or not torch.equal(pattern, other) for other_size, other in others):
        raise builder.refusal("takes other values where there are more images")
    rows = builder.call(aten.reshape.default, value, [-1, size])
    taken = builder.call(aten.index_select.default, rows, 1, builder.known(pattern.reshape(-1)))
    return builder.call(aten.reshape.default, taken, [-1, *pattern.shape[1:]])


def _pad(call: Call) -> Value:
    builder, value = call.builder, call.input(0)
    pads = builder.ints(call.input(1))
    axes = builder.ints(call.input(3)) if call.has(3) else list(range(value.rank))
    if len(pads) != 2 * len(axes):
        raise builder.refusal("has pads that do not fit its axes")
    pairs = [(0, 0)] * value.rank
    for position, axis in enumerate(axes):
        pairs[call.front(value, axis)] = (pads[position], pads[position + len(axes)])
    sizes = [size for pair in reversed(pairs) for size in pair]
    while len(sizes) > 2 and sizes[-2:] == [0, 0]:
        del sizes[-2:]
    mode = call.text("mode", "constant")
    if mode == "constant":
        fill = builder.number(call.input(2)) if call.has(2) else 0
        if fill is None:
            raise builder.refusal("pads with a number that is not known")
        return builder.call(aten.constant_pad_nd.default, value, sizes, fill)
    if mode not in _PAD_MODES:
        raise builder.refusal("pads in an unknown way")
    return builder.call(aten.pad.default, value, sizes, _PAD_MODES[mode])


def _triangle(call: Call) -> Value:
    number = call.builder.number(call.input(1)) if call.has(1) else 0
    if number is None:
        raise call.builder.refusal("has a diagonal that is not known")
    return call.builder.call(
        aten.triu.default if call.whole("upper", 1) else aten.tril.default, call.input(0), int(number)
    )


def _depth_to_space(call: Call) -> Value:
    builder, value, block = call.builder, call.input(0), call.whole("blocksize", 1)
    channels, height, width = (builder.extent(value, axis) for axis in (1, 2, 3))
    if block < 1 or channels % (block * block):
        raise builder.refusal("has a block that does not divide its channels")
    if call.text("mode", "DCR") not in {"DCR", "CRD"}:
        raise builder.refusal("orders its channels in an unknown way")
    depth = channels // (block * block)
    if call.text("mode", "DCR") == "DCR":
        sizes, order = [-1, block, block, depth, height, width], [0, 3, 4, 1, 5, 2]
    else:
        sizes, order = [-1, depth, block, block, height, width], [0, 1, 4, 2, 5, 3]
    parts = builder.call(aten.permute.default, builder.call(aten.reshape.default, value, sizes), order)
    return builder.call(aten.reshape.default, parts, [-1, depth, height * block, width * block])


def _space_to_depth(call: Call) -> Value:
    builder, value, block = call.builder, call.input(0), call.whole("blocksize", 1)
    channels, height, width = (builder.extent(value, axis) for axis in (1, 2, 3))
    if block < 1 or height % block or width % block:
        raise builder.refusal("has a block that does not divide its images")
    sizes = [-1, channels, height // block, block, width // block, block]
    parts = builder.call(aten.permute.default, builder.call(aten.reshape.default, value, sizes), [0, 3, 5, 1, 2, 4])
    return builder.call(aten.reshape.default, parts, [-1, channels * block * block, height // block, width // block])
