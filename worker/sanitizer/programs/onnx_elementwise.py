"""ONNX operators that work element by element: arithmetic, comparison, activation functions, casts."""

from __future__ import annotations

import math

import torch
from torch._ops import OpOverload

from worker.sanitizer.programs import onnx_layers
from worker.sanitizer.programs.onnx_builder import aten
from worker.sanitizer.programs.onnx_call import Call, Handler, dtype_of, is_float
from worker.sanitizer.programs.onnx_tensors import DTYPES
from worker.sanitizer.programs.onnx_values import Value

_SIXTH = 1 / 6
_CLOSE = 1e-6


def operators() -> dict[str, Handler]:
    """The operators of this module by name."""
    unary = {
        "Abs": aten.abs.default,
        "Ceil": aten.ceil.default,
        "Cos": aten.cos.default,
        "Erf": aten.erf.default,
        "Exp": aten.exp.default,
        "Floor": aten.floor.default,
        "HardSwish": aten.hardswish.default,
        "Log": aten.log.default,
        "Mish": aten.mish.default,
        "Neg": aten.neg.default,
        "Not": aten.logical_not.default,
        "Reciprocal": aten.reciprocal.default,
        "Relu": aten.relu.default,
        "Round": aten.round.default,
        "Sigmoid": aten.sigmoid.default,
        "Sign": aten.sign.default,
        "Sin": aten.sin.default,
        "Softplus": aten.softplus.default,
        "Sqrt": aten.sqrt.default,
        "Tanh": aten.tanh.default,
    }
    binary = {
        "And": aten.logical_and.default,
        "Equal": aten.eq.Tensor,
        "Greater": aten.gt.Tensor,
        "GreaterOrEqual": aten.ge.Tensor,
        "Less": aten.lt.Tensor,
        "LessOrEqual": aten.le.Tensor,
        "Or": aten.logical_or.default,
        "Xor": aten.logical_xor.default,
    }
    return {
        **{name: _unary(target) for name, target in unary.items()},
        **{name: _binary(target) for name, target in binary.items()},
        "Add": _add,
        "Cast": _cast,
        "CastLike": _cast_like,
        "Celu": _celu,
        "Clip": _clip,
        "Div": _div,
        "Dropout": _dropout,
        "Elu": _elu,
        "Gelu": _gelu,
        "HardSigmoid": _hard_sigmoid,
        "Identity": lambda call: call.input(0),
        "LeakyRelu": lambda call: call.builder.call(
            aten.leaky_relu.default, call.input(0), call.real("alpha", 0.01)
        ),
        "Max": _variadic(aten.maximum.default),
        "Mean": _mean,
        "Min": _variadic(aten.minimum.default),
        "Mod": _mod,
        "Mul": _mul,
        "PRelu": _prelu,
        "Pow": _pow,
        "Selu": _selu,
        "Softsign": _softsign,
        "Sub": _sub,
        "Sum": _variadic(aten.add.Tensor),
        "Swish": _swish,
        "ThresholdedRelu": lambda call: call.builder.call(
            aten.threshold.default, call.input(0), call.real("alpha", 1.0), 0.0
        ),
        "Where": _where,
    }  # fmt: skip


def _unary(target: OpOverload) -> Handler:
    return lambda call: call.builder.call(target, call.input(0))


def _binary(target: OpOverload) -> Handler:
    return lambda call: call.builder.call(target, _plain(call, 0), _plain(call, 1))


def _variadic(target: OpOverload) -> Handler:
    def handle(call: Call) -> Value:
        result = _plain(call, 0)
        for index in range(1, len(call.inputs)):
            result = call.builder.call(target, result, _plain(call, index))
        return result

    return handle


def _add(call: Call) -> Value:
    with_bias = onnx_layers.add_bias(call)
    return _commutative(call, aten.add.Tensor) if with_bias is None else with_bias


def _mul(call: Call) -> Value:
    return _commutative(call, aten.mul.Tensor)


def _commutative(call: Call, target: OpOverload) -> Value:
    left, right = call.input(0), call.input(1)
    if left.is_known and not right.is_known:
        left, right = right, left
    number = _number(call, right, beside=left)
    return call.builder.call(target, left, _trained(call, right) if number is None else number)


def _sub(call: Call) -> Value:
    left, right = _plain(call, 0), _plain(call, 1)
    number = _number(call, right, beside=left)
    return call.builder.call(aten.sub.Tensor, left, right if number is None else number)


def _div(call: Call) -> Value:
    left, right = _plain(call, 0), _plain(call, 1)
    if not is_float(left):
        return call.builder.call(aten.div.Tensor_mode, left, right, rounding_mode="trunc")
    number = _number(call, right, beside=left)
    return call.builder.call(aten.div.Tensor, left, right if number is None else number)


def _mod(call: Call) -> Value:
    target = aten.fmod.Tensor if call.whole("fmod", 0) else aten.remainder.Tensor
    return call.builder.call(target, _plain(call, 0), _plain(call, 1))


def _pow(call: Call) -> Value:
    base, exponent = _plain(call, 0), _plain(call, 1)
    number = _number(call, exponent, beside=base)
    if number is not None:
        number = number if is_float(base) else int(number)
        return call.builder.call(aten.pow.Tensor_Scalar, base, number)
    return call.builder.call(aten.pow.Tensor_Tensor, base, exponent)


def _mean(call: Call) -> Value:
    total = _variadic(aten.add.Tensor)(call)
    assert isinstance(total, Value)
    return call.builder.call(aten.div.Tensor, total, float(len(call.inputs)))


def _where(call: Call) -> Value:
    return call.builder.call(aten.where.self, call.input(0), _plain(call, 1), _plain(call, 2))


def _cast(call: Call) -> Value:
    target = DTYPES.get(call.whole("to", 0))
    if target is None:
        raise call.builder.refusal("casts to a type that is not supported")
    return _as_type(call, target)


def _cast_like(call: Call) -> Value:
    return _as_type(call, dtype_of(call.input(1)))


def _as_type(call: Call, target: torch.dtype) -> Value:
    value = call.input(0)
    # The network is computed in float32 throughout, so that a cast between floating-point types is none.
    target = torch.float32 if target.is_floating_point else target
    if dtype_of(value) is target:
        return value
    return call.builder.call(aten._to_copy.default, value, dtype=target)  # noqa: SLF001 - the operator's name


def _dropout(call: Call) -> Value:
    if call.has(2) and call.builder.number(call.input(2)):
        raise call.builder.refusal("drops values at random (training mode)")
    return call.input(0)


def _clip(call: Call) -> Value:
    builder, value = call.builder, call.input(0)
    low, high = (None if not call.has(index) else builder.number(call.input(index)) for index in (1, 2))
    if any(call.has(index) and limit is None for index, limit in ((1, low), (2, high))):
        raise builder.refusal("clips to limits that are not known before an image is seen")
    low = None if low is not None and math.isinf(low) else low
    high = None if high is not None and (math.isinf(high) or high > torch.finfo(torch.float32).max / 2) else high
    if high is None and low == 0:
        return builder.call(aten.relu.default, value)
    if low is None or high is None:
        return builder.call(aten.clamp.default, value, low, high)
    return builder.call(aten.hardtanh.default, value, low, high)


def _elu(call: Call) -> Value:
    return call.builder.call(aten.elu.default, call.input(0), call.real("alpha", 1.0))


def _selu(call: Call) -> Value:
    alpha, gamma = call.real("alpha", 1.67326319217681884765625), call.real("gamma", 1.05070102214813232421875)
    return call.builder.call(aten.elu.default, call.input(0), alpha, gamma)


def _celu(call: Call) -> Value:
    alpha = call.real("alpha", 1.0)
    if alpha == 0:
        raise call.builder.refusal("divides by its attribute alpha, which is zero")
    return call.builder.call(aten.elu.default, call.input(0), alpha, 1.0, 1 / alpha)


def _gelu(call: Call) -> Value:
    approximate = call.text("approximate", "none")
    if approximate not in {"none", "tanh"}:
        raise call.builder.refusal("is approximated in an unknown way")
    return call.builder.call(aten.gelu.default, call.input(0), approximate=approximate)


def _hard_sigmoid(call: Call) -> Value:
    builder, alpha, beta = call.builder, call.real("alpha", 0.2), call.real("beta", 0.5)
    if abs(alpha - _SIXTH) < _CLOSE and beta == 0.5:
        return builder.call(aten.hardsigmoid.default, call.input(0))
    line = builder.call(aten.add.Tensor, builder.call(aten.mul.Tensor, call.input(0), alpha), beta)
    return builder.call(aten.hardtanh.default, line, 0.0, 1.0)


def _prelu(call: Call) -> Value:
    builder, value = call.builder, call.input(0)
    negative = builder.call(aten.mul.Tensor, value, builder.weight(call.input(1)))
    return builder.call(aten.where.self, builder.call(aten.gt.Scalar, value, 0), value, negative)


def _softsign(call: Call) -> Value:
    builder, value = call.builder, call.input(0)
    return builder.call(
        aten.div.Tensor, value, builder.call(aten.add.Tensor, builder.call(aten.abs.default, value), 1.0)
    )


def _swish(call: Call) -> Value:
    builder, value, alpha = call.builder, call.input(0), call.real("alpha", 1.0)
    if alpha == 1:
        return builder.call(aten.silu.default, value)
    gate = builder.call(aten.sigmoid.default, builder.call(aten.mul.Tensor, value, alpha))
    return builder.call(aten.mul.Tensor, value, gate)


def _plain(call: Call, index: int) -> Value:
    """An input that is no weight to be trained, though it may lie in the file."""
    return call.builder.constant(call.input(index))


def _trained(call: Call, value: Value) -> Value:
    """What is added or multiplied is a weight (a bias, a scale, an embedding), unless it masks with infinities."""
    is_weight = value.weight is not None and bool(torch.isfinite(value.samples[0]).all())
    return value if is_weight else call.builder.constant(value)


def _number(call: Call, value: Value, *, beside: Value) -> float | int | None:
    """A known number that no shape needs: one that does not add dimensions to what stands beside it."""
    if beside.is_known or value.rank > beside.rank or dtype_of(value) is torch.bool:
        return None
    return call.builder.number(value)
