"""ONNX operators with weights: convolutions, matrix products, norms, attention."""

from __future__ import annotations

import re

from worker.sanitizer.programs.onnx_builder import aten
from worker.sanitizer.programs.onnx_call import Call, Handler
from worker.sanitizer.programs.onnx_values import Dim, Value
from worker.sanitizer.programs.onnx_windows import Window, window
from worker.sanitizer.refusals import OnnxTrainingError

_CONVOLUTIONS = {3: aten.conv1d.default, 4: aten.conv2d.default, 5: aten.conv3d.default}
_EQUATION = re.compile(r"[A-Za-z.,\->\s]{1,200}")


def operators() -> dict[str, Handler]:
    """The operators of this module by name."""
    return {
        "Attention": _attention,
        "BatchNormalization": _batch_norm,
        "Conv": _conv,
        "ConvTranspose": _conv_transpose,
        "Einsum": _einsum,
        "Gemm": _gemm,
        "GroupNormalization": _group_norm,
        "InstanceNormalization": _instance_norm,
        "LayerNormalization": _layer_norm,
        "MatMul": _matmul,
        "RMSNormalization": _rms_norm,
    }


def add_bias(call: Call) -> Value | None:
    """The layer before an Add with what is added as its bias; None where the Add is no bias of one layer."""
    for layer, other in ((0, 1), (1, 0)):
        value, bias = call.input(layer), call.input(other)
        node = value.node
        if node is None or bias.weight is None or not call.read_once(layer) or node.users:
            continue
        is_linear = node.target is aten.linear.default
        if not (is_linear or node.target in _CONVOLUTIONS.values()) or node.args[2] is not None:
            continue
        channels = value.samples[0].shape[-1 if is_linear else 1]
        after = 0 if is_linear else value.rank - 2
        shape = tuple(bias.samples[0].shape)
        if shape[: len(shape) - 1 - after].count(1) == len(shape) - 1 - after and shape[-1 - after :] == (
            channels,
            *(1,) * after,
        ):
            arguments = list(node.args)
            flat = call.builder.weight(bias, flat=len(shape) > 1)
            arguments[2] = flat.node
            replacement = call.builder.graph.call_function(node.target, tuple(arguments))  # type: ignore[arg-type]
            call.builder.graph.erase_node(node)
            replacement.meta["shape"] = tuple(value.samples[0].shape)
            return Value(value.samples, replacement)
    return None


def _conv(call: Call) -> Value:
    builder, images, weight = call.builder, call.input(0), builder_weight(call, 1)
    if images.rank not in _CONVOLUTIONS or weight.rank != images.rank:
        raise builder.refusal("convolves neither lines, images nor volumes")
    shape = window(call, images, list(weight.samples[0].shape[2:]))
    padded, padding = _padded(call, images, shape)
    return builder.call(
        _CONVOLUTIONS[images.rank], padded, weight, _optional_weight(call, 2), shape.strides, padding,
        shape.dilations, call.whole("group", 1),
    )  # fmt: skip


def _padded(call: Call, images: Value, shape: Window) -> tuple[Value, list[int]]:
    """The images and the padding that is left to the operator, which pads both sides alike."""
    if shape.before == shape.after:
        return images, shape.before
    return call.builder.call(aten.constant_pad_nd.default, images, shape.torch_pads(), 0.0), [0] * len(shape.before)


def _conv_transpose(call: Call) -> Value:
    builder, images, weight = call.builder, call.input(0), builder_weight(call, 1)
    if call.text("auto_pad", "NOTSET") not in {"NOTSET", "VALID"} or call.wholes("output_shape") is not None:
        raise builder.refusal("pads its output automatically")
    number = images.rank - 2
    kernel = list(weight.samples[0].shape[2:])
    strides, dilations = call.wholes("strides") or [1] * number, call.wholes("dilations") or [1] * number
    extra, pads = call.wholes("output_padding") or [0] * number, call.wholes("pads") or [0] * 2 * number
    if not len(kernel) == len(strides) == len(dilations) == len(extra) == number or len(pads) != 2 * number:
        raise builder.refusal("has attributes of different lengths")
    before, after = pads[:number], pads[number:]
    same = before == after
    result = builder.call(
        aten.convolution.default, images, weight, _optional_weight(call, 2), strides,
        before if same else [0] * number, dilations, True, extra, call.whole("group", 1),
    )  # fmt: skip
    if not same:
        for axis, (first, last) in enumerate(zip(before, after, strict=True), start=2):
            size = builder.extent(result, axis)
            result = builder.call(aten.slice.Tensor, result, axis, first, size - last)
    return result


def _gemm(call: Call) -> Value:
    builder, left, right = call.builder, call.input(0), call.input(1)
    alpha, beta = call.real("alpha", 1.0), call.real("beta", 1.0)
    if call.whole("transA", 0):
        left = builder.call(aten.permute.default, left, [1, 0])
    weight = builder.weight(right, transposed=not call.whole("transB", 0))
    bias = call.get(2)
    fits = bias is not None and bias.samples[0].numel() == weight.samples[0].shape[0]
    if alpha == 1 and beta == 1 and (bias is None or fits):
        flat = None if bias is None else builder.weight(bias, flat=bias.rank != 1)
        return builder.call(aten.linear.default, left, weight, flat)
    product = builder.call(aten.linear.default, left, weight, None)
    product = product if alpha == 1 else builder.call(aten.mul.Tensor, product, alpha)
    if bias is None:
        return product
    bias = builder.weight(bias)
    return builder.call(aten.add.Tensor, product, bias if beta == 1 else builder.call(aten.mul.Tensor, bias, beta))


def _matmul(call: Call) -> Value:
    left, right = call.input(0), call.input(1)
    if right.weight is not None and right.rank == 2 and left.rank >= 2 and not left.is_known:
        return call.builder.call(aten.linear.default, left, call.builder.weight(right, transposed=True), None)
    return call.builder.call(aten.matmul.default, left, right)


def _einsum(call: Call) -> Value:
    equation = call.text("equation", "")
    if not _EQUATION.fullmatch(equation):
        raise call.builder.refusal("has an equation that cannot be read")
    return call.builder.call(aten.einsum.default, equation, [call.input(i) for i in range(len(call.inputs))])


def _batch_norm(call: Call) -> Value:
    if call.whole("training_mode", 0):
        return _standardized(call)
    builder, scale, shift, mean = call.builder, call.input(1), call.input(2), call.input(3)
    wanted = (mean.weight or "").removesuffix(".running_mean")
    if not wanted or wanted == mean.weight:
        wanted = call.node.name or call.node.outputs[0]
    prefix = builder.norm_name(wanted, scale, shift)
    return builder.call(
        aten.batch_norm.default, call.input(0), builder.weight(scale), builder.weight(shift),
        builder.statistics(mean, f"{prefix}.running_mean"),
        builder.statistics(call.input(4), f"{prefix}.running_var"),
        False, 0.1, call.real("epsilon", 1e-5), False,
    )  # fmt: skip


def _standardized(call: Call) -> Value:
    """A norm by the statistics of its own input: of a weight it is weight standardisation, of images it is training."""
    builder, value = call.builder, call.input(0)
    if builder.depends_on_images(value):
        raise OnnxTrainingError("a batch norm is in training mode; export the network after model.eval()")
    # Exporters write out the gain and the shift that a network does not have, one tensor for all of its layers.
    gain, shift = (None if _is_all(call.input(at), number) else call.input(at) for at, number in ((1, 1), (2, 0)))
    return builder.call(
        aten.batch_norm.default, value, gain, shift, None, None, True, 0.0, call.real("epsilon", 1e-5), False
    )


def _is_all(value: Value, number: float) -> bool:
    return value.is_known and all(bool((sample == number).all()) for sample in value.samples)


def _layer_norm(call: Call) -> Value:
    builder, value = call.builder, call.input(0)
    shape = _normalized_shape(call, value)
    scale, shift = call.input(1), call.get(2)
    if list(scale.samples[0].shape) == shape and (shift is None or list(shift.samples[0].shape) == shape):
        return builder.call(
            aten.layer_norm.default, value, shape, builder.weight(scale), _optional_weight(call, 2),
            call.real("epsilon", 1e-5), False,
        )  # fmt: skip
    result = builder.call(aten.layer_norm.default, value, shape, None, None, call.real("epsilon", 1e-5), False)
    result = builder.call(aten.mul.Tensor, result, builder.weight(scale))
    return result if shift is None else builder.call(aten.add.Tensor, result, builder.weight(shift))


def _rms_norm(call: Call) -> Value:
    builder, value = call.builder, call.input(0)
    result = builder.call(
        aten.rms_norm.default, value, _normalized_shape(call, value), None, call.real("epsilon", 1e-5)
    )
    return builder.call(aten.mul.Tensor, result, builder_weight(call, 1))


def _normalized_shape(call: Call, value: Value) -> list[int]:
    return [call.builder.extent(value, axis) for axis in range(call.axis(value, -1), value.rank)]


def _group_norm(call: Call) -> Value:
    builder, value, groups = call.builder, call.input(0), call.whole("num_groups", 0)
    channels = builder.extent(value, 1)
    if groups < 1 or channels % groups:
        raise builder.refusal("has a number of groups that does not divide its channels")
    scale, shift = builder_weight(call, 1), builder_weight(call, 2)
    if channels != groups and scale.samples[0].numel() == groups:
        # Before opset 21 there is one scale per group.
        scale, shift = (
            builder.call(aten.repeat_interleave.self_int, part, channels // groups) for part in (scale, shift)
        )
    return builder.call(aten.group_norm.default, value, groups, scale, shift, call.real("epsilon", 1e-5), False)


def _instance_norm(call: Call) -> Value:
    return call.builder.call(
        aten.instance_norm.default, call.input(0), builder_weight(call, 1), builder_weight(call, 2), None, None,
        True, 0.1, call.real("epsilon", 1e-5), False,
    )  # fmt: skip


def _attention(call: Call) -> Value:
    builder = call.builder
    if (
        any(call.has(index) for index in (4, 5, 6))
        or call.real("softcap", 0.0)
        or (call.has(3) and call.input(3).rank < 2)
    ):
        raise builder.refusal("keeps a cache, or caps its scores")
    parts = [call.input(index) for index in range(3)]
    flat = parts[0].rank == 3
    if flat:
        heads = [call.whole("q_num_heads", 0)] + [call.whole("kv_num_heads", 0)] * 2
        parts = [_heads(call, part, number) for part, number in zip(parts, heads, strict=True)]
    scale = call.real("scale", 0.0) or None
    result = builder.call(
        aten.scaled_dot_product_attention.default, *parts, call.get(3), 0.0, bool(call.whole("is_causal", 0)),
        scale=scale,
    )  # fmt: skip
    if not flat:
        return result
    merged = builder.call(aten.permute.default, result, [0, 2, 1, 3])
    sizes: list[Dim] = [-1, builder.extent(merged, 1), builder.extent(merged, 2) * builder.extent(merged, 3)]
    return builder.call(aten.reshape.default, merged, sizes)


def _heads(call: Call, part: Value, number: int) -> Value:
    builder, length, width = call.builder, call.builder.extent(part, 1), call.builder.extent(part, 2)
    if number < 1 or width % number:
        raise builder.refusal("has a number of heads that does not divide its width")
    split = builder.call(aten.reshape.default, part, [-1, length, number, width // number])
    return builder.call(aten.permute.default, split, [0, 2, 1, 3])


def builder_weight(call: Call, index: int) -> Value:
    """An input that is a layer's weight."""
    return call.builder.weight(call.input(index))


def _optional_weight(call: Call, index: int) -> Value | None:
    return builder_weight(call, index) if call.has(index) else None
