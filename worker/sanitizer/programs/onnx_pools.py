"""ONNX operators that pool, reduce and normalise over dimensions."""

from __future__ import annotations

import math

import torch
from torch._ops import OpOverload

from worker.sanitizer.programs.onnx_builder import aten
from worker.sanitizer.programs.onnx_call import Call, Handler
from worker.sanitizer.programs.onnx_values import Value
from worker.sanitizer.programs.onnx_windows import Window, window

_MAX_POOLS = {3: aten.max_pool1d.default, 4: aten.max_pool2d.default, 5: aten.max_pool3d.default}
_AVERAGE_POOLS = {3: aten.avg_pool1d.default, 4: aten.avg_pool2d.default, 5: aten.avg_pool3d.default}
_SOFTMAX_OF_ONE_AXIS = 13


def operators() -> dict[str, Handler]:
    """The operators of this module by name."""
    return {
        "ArgMax": _arg(aten.argmax.default),
        "ArgMin": _arg(aten.argmin.default),
        "AveragePool": _average_pool,
        "CumSum": _cumulative_sum,
        "GlobalAveragePool": _global_average,
        "GlobalMaxPool": lambda call: call.builder.call(
            aten.amax.default, call.input(0), _spatial(call.input(0)), True
        ),
        "LRN": _local_response,
        "LogSoftmax": _softmax(aten.log_softmax.int),
        "LpNormalization": _lp_normalization,
        "MaxPool": _max_pool,
        "ReduceL1": _reduce(_absolute, aten.sum.dim_IntList),
        "ReduceL2": _reduce(_square, aten.sum.dim_IntList, aten.sqrt.default),
        "ReduceLogSum": _reduce(None, aten.sum.dim_IntList, aten.log.default),
        "ReduceLogSumExp": _reduce(None, aten.logsumexp.default),
        "ReduceMax": _reduce(None, aten.amax.default),
        "ReduceMean": _reduce(None, aten.mean.dim),
        "ReduceMin": _reduce(None, aten.amin.default),
        "ReduceProd": _product,
        "ReduceSum": _reduce(None, aten.sum.dim_IntList),
        "ReduceSumSquare": _reduce(_square, aten.sum.dim_IntList),
        "Softmax": _softmax(aten.softmax.int),
    }  # fmt: skip


def _max_pool(call: Call) -> Value:
    builder, images = call.builder, call.input(0)
    shape = _pool_window(call, images, _MAX_POOLS)
    ceil = bool(call.whole("ceil_mode", 0))
    pool = _MAX_POOLS[images.rank]
    if _is_plain(shape):
        return builder.call(pool, images, shape.kernel, shape.strides, shape.before, shape.dilations, ceil)
    exact = _exact(call, images, shape, ceil=ceil)
    padded = builder.call(aten.constant_pad_nd.default, images, exact.torch_pads(), -math.inf)
    return builder.call(pool, padded, shape.kernel, shape.strides, [0] * len(shape.kernel), shape.dilations, False)


def _average_pool(call: Call) -> Value:
    builder, images = call.builder, call.input(0)
    shape = _pool_window(call, images, _AVERAGE_POOLS)
    ceil, count_pads = bool(call.whole("ceil_mode", 0)), bool(call.whole("count_include_pad", 0))
    if any(dilation != 1 for dilation in shape.dilations):
        raise builder.refusal("averages over a dilated window")
    pool, none = _AVERAGE_POOLS[images.rank], [0] * len(shape.kernel)
    if _is_plain(shape):
        return builder.call(pool, images, shape.kernel, shape.strides, shape.before, ceil, count_pads)
    exact = _exact(call, images, shape, ceil=ceil)
    sizes = [builder.extent(images, axis) for axis in range(2, images.rank)]
    counted = builder.known(torch.ones(1, 1, *sizes))
    overhang = Window(
        shape.kernel, shape.strides, shape.dilations, none,
        [more - less for more, less in zip(exact.after, shape.after, strict=True)],
    ) if count_pads else exact  # fmt: skip
    if count_pads:
        counted = builder.call(aten.constant_pad_nd.default, counted, shape.torch_pads(), 1.0)
    counted = builder.call(aten.constant_pad_nd.default, counted, overhang.torch_pads(), 0.0)
    share = builder.call(pool, counted, shape.kernel, shape.strides, none, False, True)
    padded = builder.call(aten.constant_pad_nd.default, images, exact.torch_pads(), 0.0)
    return builder.call(
        aten.div.Tensor, builder.call(pool, padded, shape.kernel, shape.strides, none, False, True), share
    )


def _pool_window(call: Call, images: Value, pools: dict[int, OpOverload]) -> Window:
    if images.rank not in pools or call.whole("storage_order", 0):
        raise call.builder.refusal("pools neither lines, images nor volumes")
    return window(call, images, call.wholes("kernel_shape") or [])


def _is_plain(shape: Window) -> bool:
    """Whether torch's own pools take the padding: the same on both sides, and at most half of the kernel."""
    return shape.before == shape.after and all(
        2 * pad <= kernel for pad, kernel in zip(shape.before, shape.kernel, strict=True)
    )


def _exact(call: Call, images: Value, shape: Window, *, ceil: bool) -> Window:
    """The padding with which the windows end exactly where the padded images do (or before, without ceil_mode)."""
    after = []
    for axis, (before, behind, stride) in enumerate(zip(shape.before, shape.after, shape.strides, strict=True)):
        size = call.builder.extent(images, axis + 2)
        room = size + before + behind - shape.reach(axis)
        steps = -(-room // stride) if ceil else room // stride
        if ceil and steps * stride >= size + before:
            steps -= 1  # A window that would begin behind the images is left out.
        after.append(max(behind, steps * stride + shape.reach(axis) - size - before))
    return Window(shape.kernel, shape.strides, shape.dilations, shape.before, after)


def _global_average(call: Call) -> Value:
    images = call.input(0)
    if images.rank == 4:
        return call.builder.call(aten.adaptive_avg_pool2d.default, images, [1, 1])
    return call.builder.call(aten.mean.dim, images, _spatial(images), True)


def _spatial(images: Value) -> list[int]:
    return list(range(2, images.rank))


def _softmax(target: OpOverload) -> Handler:
    def handle(call: Call) -> Value:
        builder, value = call.builder, call.input(0)
        axis = call.axis(value, -1 if call.opset >= _SOFTMAX_OF_ONE_AXIS else 1)
        if call.opset >= _SOFTMAX_OF_ONE_AXIS or axis == value.rank - 1:
            return builder.call(target, value, axis)
        # Older opsets take the softmax over this axis and all behind it together.
        sizes = [builder.extent(value, behind) for behind in range(axis, value.rank)]
        flat = builder.call(aten.flatten.using_ints, value, axis, -1)
        result = builder.call(target, flat, axis)
        return builder.call(aten.reshape.default, result, [*builder.shape(value)[:axis], *sizes])

    return handle


def _absolute(call: Call, value: Value) -> Value:
    return call.builder.call(aten.abs.default, value)


def _square(call: Call, value: Value) -> Value:
    return call.builder.call(aten.mul.Tensor, value, value)


def _reduce(before: object, target: OpOverload, after: OpOverload | None = None) -> Handler:
    def handle(call: Call) -> Value:
        builder, value = call.builder, call.input(0)
        axes, keep = _axes(call, value), bool(call.whole("keepdims", 1))
        if axes is None:
            return value
        value = before(call, value) if callable(before) else value
        result = builder.call(target, value, axes, keep)
        return result if after is None else builder.call(after, result)

    return handle


def _product(call: Call) -> Value:
    value = call.input(0)
    axes = _axes(call, value)
    for axis in sorted(axes or [], reverse=True):
        value = call.builder.call(aten.prod.dim_int, value, axis, bool(call.whole("keepdims", 1)))
    return value


def _axes(call: Call, value: Value) -> list[int] | None:
    """The axes to reduce, all of them where none is named; None where nothing is to be reduced."""
    axes = call.axes(1)
    if not axes:
        return None if call.whole("noop_with_empty_axes", 0) else list(range(value.rank))
    return sorted({call.front(value, axis) for axis in axes})


def _arg(target: OpOverload) -> Handler:
    def handle(call: Call) -> Value:
        if call.whole("select_last_index", 0):
            raise call.builder.refusal("selects the last of equal values")
        value = call.input(0)
        return call.builder.call(target, value, call.axis(value, 0), bool(call.whole("keepdims", 1)))

    return handle


def _lp_normalization(call: Call) -> Value:
    builder, value = call.builder, call.input(0)
    axis, order = call.axis(value, -1), call.whole("p", 2)
    if order not in {1, 2}:
        raise builder.refusal("normalises by a norm other than 1 or 2")
    norm = builder.call(aten.linalg_vector_norm.default, value, order, [axis], True)
    # Where all values are zero they stay zero.
    return builder.call(aten.div.Tensor, value, builder.call(aten.clamp_min.default, norm, 1e-12))


def _local_response(call: Call) -> Value:
    builder, value, size = call.builder, call.input(0), call.whole("size", 1)
    if value.rank != 4 or not 1 <= size <= 1 << 12:
        raise builder.refusal("normalises over neighbours of something else than images")
    squares = builder.call(aten.unsqueeze.default, _square(call, value), 1)
    padded = builder.call(aten.constant_pad_nd.default, squares, [0, 0, 0, 0, (size - 1) // 2, size // 2], 0.0)
    mean = builder.call(aten.avg_pool3d.default, padded, [size, 1, 1], [1, 1, 1])
    scaled = builder.call(aten.mul.Tensor, builder.call(aten.squeeze.dim, mean, 1), call.real("alpha", 1e-4))
    divisor = builder.call(
        aten.pow.Tensor_Scalar, builder.call(aten.add.Tensor, scaled, call.real("bias", 1.0)), call.real("beta", 0.75)
    )
    return builder.call(aten.div.Tensor, value, divisor)


def _cumulative_sum(call: Call) -> Value:
    axis = call.builder.number(call.input(1))
    if axis is None or call.whole("exclusive", 0) or call.whole("reverse", 0):
        raise call.builder.refusal("sums in reverse, or along an axis that is not known")
    return call.builder.call(aten.cumsum.default, call.input(0), int(axis))
