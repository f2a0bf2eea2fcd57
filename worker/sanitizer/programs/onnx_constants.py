"""ONNX operators that make constants, shapes among them."""

from __future__ import annotations

import torch

from worker.sanitizer.programs.onnx_builder import aten
from worker.sanitizer.programs.onnx_call import Call, Handler, dtype_of
from worker.sanitizer.programs.onnx_values import Value


def operators() -> dict[str, Handler]:
    """The operators of this module by name."""
    return {
        "Constant": _constant,
        "ConstantOfShape": _constant_of_shape,
        "Range": _range,
        "Shape": _shape,
        "Size": lambda call: call.builder.known(*(torch.tensor(sample.numel()) for sample in call.input(0).samples)),
    }


def _constant(call: Call) -> Value:
    for name, dtype in (("value_float", torch.float32), ("value_floats", torch.float32)):
        if name in call.node.attributes:
            return call.builder.known(torch.tensor(call.node.attributes[name], dtype=dtype))
    for name in ("value_int", "value_ints"):
        if name in call.node.attributes:
            return call.builder.known(torch.tensor(call.node.attributes[name], dtype=torch.int64))
    raise call.builder.refusal("is neither numbers nor a tensor")


def _constant_of_shape(call: Call) -> Value:
    value = call.tensor("value")
    value = torch.zeros(1) if value is None else value
    if value.numel() != 1:
        raise call.builder.refusal("has not one value")
    dtype = torch.float32 if value.is_floating_point() else value.dtype
    return call.builder.call(aten.full.default, call.builder.dims(call.input(0)), value.item(), dtype=dtype)


def _range(call: Call) -> Value:
    start, limit, delta = (call.builder.dims(call.input(index))[0] for index in range(3))
    return call.builder.call(aten.arange.start_step, start, limit, delta, dtype=dtype_of(call.input(0)))


def _shape(call: Call) -> Value:
    start, end = call.whole("start", 0), call.whole("end", call.input(0).rank)
    return call.builder.known(
        *(torch.tensor(list(s.shape)[start:end], dtype=torch.int64) for s in call.input(0).samples)
    )
