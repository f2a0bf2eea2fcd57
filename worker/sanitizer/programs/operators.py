"""The operators that a graph from a file may call: pure arithmetic on tensors and on sizes.

An operator is on the list if it reads nothing but its arguments, returns initialised memory, checks its indices, and
is what image classifiers are made of. Whatever writes into its argument is listed apart.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload

MAX_SIZE = 2**62

_LAYERS = """
    conv1d.default conv1d.padding conv2d.default conv2d.padding conv3d.default convolution.default
    conv_transpose2d.input linear.default addmm.default mm.default bmm.default matmul.default baddbmm.default
    einsum.default bilinear.default embedding.default prelu.default dot.default mv.default
    batch_norm.default layer_norm.default group_norm.default instance_norm.default rms_norm.default
    native_layer_norm.default native_group_norm.default _native_batch_norm_legit_no_training.default
    max_pool1d.default max_pool2d.default max_pool2d_with_indices.default avg_pool1d.default avg_pool2d.default
    adaptive_avg_pool1d.default adaptive_avg_pool2d.default adaptive_max_pool1d.default adaptive_max_pool2d.default
    _adaptive_avg_pool2d.default
    scaled_dot_product_attention.default _scaled_dot_product_flash_attention_for_cpu.default
    softmax.int _softmax.default log_softmax.int _log_softmax.default
    dropout.default feature_dropout.default alpha_dropout.default native_dropout.default
    upsample_nearest2d.vec upsample_nearest2d.default upsample_bilinear2d.vec upsample_bilinear2d.default
    upsample_bicubic2d.vec upsample_bicubic2d.default _upsample_bilinear2d_aa.vec _upsample_bilinear2d_aa.default
    _upsample_bicubic2d_aa.vec _upsample_bicubic2d_aa.default _upsample_nearest_exact2d.vec
    _upsample_nearest_exact2d.default grid_sampler.default grid_sampler_2d.default
    pixel_shuffle.default pixel_unshuffle.default channel_shuffle.default native_channel_shuffle.default
    im2col.default col2im.default unfold.default
"""
_POINTWISE = """
    relu.default relu6.default leaky_relu.default elu.default selu.default celu.default silu.default gelu.default
    mish.default hardtanh.default hardswish.default hardsigmoid.default sigmoid.default tanh.default softplus.default
    log_sigmoid.default threshold.default hardshrink.default softshrink.default glu.default
    add.Tensor add.Scalar sub.Tensor sub.Scalar rsub.Tensor rsub.Scalar mul.Tensor mul.Scalar div.Tensor div.Scalar
    div.Tensor_mode div.Scalar_mode floor_divide.default floor_divide.Scalar remainder.Scalar remainder.Tensor
    fmod.Scalar fmod.Tensor
    pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar rsqrt.default sqrt.default square.default reciprocal.default
    exp.default exp2.default expm1.default log.default log1p.default log2.default abs.default neg.default sign.default
    sin.default cos.default tan.default atan.default atan2.default erf.default floor.default ceil.default round.default
    trunc.default frac.default
    clamp.default clamp.Tensor clamp_min.default clamp_min.Tensor clamp_max.default clamp_max.Tensor maximum.default
    minimum.default addcmul.default addcdiv.default lerp.Scalar lerp.Tensor nan_to_num.default
    eq.Scalar eq.Tensor ne.Scalar ne.Tensor lt.Scalar lt.Tensor le.Scalar le.Tensor gt.Scalar gt.Tensor ge.Scalar
    ge.Tensor logical_and.default logical_or.default logical_not.default logical_xor.default bitwise_and.Tensor
    bitwise_and.Scalar bitwise_or.Tensor bitwise_or.Scalar bitwise_not.default isnan.default isinf.default
    where.self where.ScalarSelf where.ScalarOther where.Scalar masked_fill.Scalar masked_fill.Tensor
"""
_SHAPES = """
    view.default reshape.default _unsafe_view.default view_as.default reshape_as.default permute.default
    transpose.int t.default numpy_T.default mT.default movedim.int movedim.intlist moveaxis.int moveaxis.intlist
    swapaxes.default flatten.using_ints unflatten.int squeeze.default squeeze.dim squeeze.dims unsqueeze.default
    expand.default expand_as.default repeat.default repeat_interleave.self_int tile.default broadcast_to.default
    contiguous.default clone.default alias.default detach.default lift_fresh_copy.default
    cat.default concat.default stack.default hstack.default vstack.default
    split.Tensor split.sizes split_with_sizes.default chunk.default tensor_split.sections unbind.int
    slice.Tensor select.int narrow.default roll.default flip.default rot90.default diagonal.default
    pad.default constant_pad_nd.default reflection_pad1d.default reflection_pad2d.default replication_pad2d.default
    index.Tensor index_select.default gather.default take_along_dim.default
    tril.default triu.default meshgrid.default meshgrid.indexing one_hot.default
    to.dtype to.dtype_layout to.device to.other _to_copy.default type_as.default
    sym_size.int sym_numel.default sym_stride.int
"""
_REDUCTIONS = """
    mean.default mean.dim sum.default sum.dim_IntList amax.default amin.default max.default max.dim min.default min.dim
    argmax.default argmin.default var.default var.dim var.correction std.default std.dim std.correction var_mean.dim
    var_mean.correction prod.default prod.dim_int norm.Scalar
    norm.ScalarOpt_dim linalg_vector_norm.default logsumexp.default cumsum.default
    all.default any.default all.dim any.dim topk.default sort.default argsort.default
"""
_CONSTANTS = """
    arange.default arange.start arange.start_step linspace.default full.default full_like.default zeros.default
    zeros_like.default ones.default ones_like.default new_zeros.default new_ones.default new_full.default
    scalar_tensor.default eye.default
"""
_IN_PLACE = """
    relu_.default relu6_.default leaky_relu_.default elu_.default selu_.default celu_.default silu_.default
    gelu_.default mish_.default hardtanh_.default hardswish_.default hardsigmoid_.default sigmoid_.default
    tanh_.default threshold_.default clamp_.default clamp_min_.default clamp_max_.default dropout_.default
    add_.Tensor add_.Scalar sub_.Tensor sub_.Scalar mul_.Tensor mul_.Scalar div_.Tensor div_.Scalar
    masked_fill_.Scalar masked_fill_.Tensor fill_.Scalar fill_.Tensor zero_.default copy_.default exp_.default
    sqrt_.default rsqrt_.default neg_.default pow_.Scalar detach_.default unsqueeze_.default squeeze_.dim
"""


def _resolve(names: str) -> dict[str, OpOverload]:
    found = {}
    for name in names.split():
        packet, _, overload = name.partition(".")
        # Not every supported torch has every overload; one that is absent is refused like any other stranger.
        operator_found = getattr(getattr(torch.ops.aten, packet, None), overload, None)
        if isinstance(operator_found, OpOverload):
            found[name] = operator_found
    return found


IN_PLACE = frozenset(_resolve(_IN_PLACE).values())
# aten overload by its name, e.g. "conv2d.default".
ATEN = _resolve(_LAYERS + _POINTWISE + _SHAPES + _REDUCTIONS + _CONSTANTS + _IN_PLACE)
# They check what the rest of the graph finds out in any case; their arguments are not even read.
ASSERTIONS = frozenset(
    {
        *("_assert_tensor_metadata.default", "_assert_scalar.default", "_assert_async.default", "_assert_async.msg"),
        *("_functional_assert_async.msg", "sym_constrain_range_for_size.default", "sym_constrain_range.default"),
    }
)
# They return their argument's memory in inference, without their schema saying so.
_RETURNS_ITS_INPUT = frozenset({"dropout", "feature_dropout", "alpha_dropout", "type_as"})


def schema_of(target: OpOverload) -> Any:  # noqa: ANN401 - torch does not type it
    """The schema: arguments with names and defaults, and what is returned."""
    return target._schema  # noqa: SLF001 - there is no other way to it


def shares_memory(target: OpOverload) -> bool:
    """Whether what the operator returns may be its first argument's memory."""
    schema = schema_of(target)
    aliases = any(result.alias_info is not None for result in schema.returns)
    return aliases or schema.name.rpartition(":")[2] in _RETURNS_ITS_INPUT


Number = int | float | bool


def _sized(value: object) -> Number:
    """A number of a size that a shape can have: multiplication over and over would else fill the memory."""
    if not isinstance(value, (int, float)) or not math.isfinite(value) or abs(value) > MAX_SIZE:
        raise ValueError("a size of the program is not a number that a shape can have")
    return value


def size_add(left: Number, right: Number) -> Number:
    """Their sum."""
    return _sized(_sized(left) + _sized(right))


def size_sub(left: Number, right: Number) -> Number:
    """Their difference."""
    return _sized(_sized(left) - _sized(right))


def size_mul(left: Number, right: Number) -> Number:
    """Their product."""
    return _sized(_sized(left) * _sized(right))


def size_floordiv(left: Number, right: Number) -> Number:
    """The quotient, rounded down."""
    return _sized(_sized(left) // _sized(right))


def size_truediv(left: Number, right: Number) -> Number:
    """The quotient."""
    return _sized(_sized(left) / _sized(right))


def size_mod(left: Number, right: Number) -> Number:
    """The remainder."""
    return _sized(_sized(left) % _sized(right))


def size_neg(value: Number) -> Number:
    """The negative."""
    return -_sized(value)


def size_max(left: Number, right: Number) -> Number:
    """The larger one."""
    return max(_sized(left), _sized(right))


def size_min(left: Number, right: Number) -> Number:
    """The smaller one."""
    return min(_sized(left), _sized(right))


def size_float(value: Number) -> float:
    """The size as a floating-point number."""
    return float(_sized(value))


def size_int(value: Number) -> int:
    """The size without its fraction."""
    return int(_sized(value))


def size_ceil(value: Number) -> int:
    """The size, rounded up."""
    return math.ceil(_sized(value))


def size_floor(value: Number) -> int:
    """The size, rounded down."""
    return math.floor(_sized(value))


def size_sqrt(value: Number) -> float:
    """The square root."""
    return math.sqrt(_sized(value))


def size_not(value: Number) -> bool:
    """Whether it is false."""
    return not _sized(value)


# What torch.export writes for arithmetic on symbolic sizes, and the bounded function that stands for it here.
SIZES: dict[str, Callable[..., Any]] = {
    "_operator.add": size_add,
    "_operator.sub": size_sub,
    "_operator.mul": size_mul,
    "_operator.floordiv": size_floordiv,
    "_operator.truediv": size_truediv,
    "_operator.mod": size_mod,
    "_operator.neg": size_neg,
    "_operator.eq": operator.eq,
    "_operator.ne": operator.ne,
    "_operator.lt": operator.lt,
    "_operator.le": operator.le,
    "_operator.gt": operator.gt,
    "_operator.ge": operator.ge,
    "torch.sym_max": size_max,
    "torch.sym_min": size_min,
    "torch.sym_float": size_float,
    "torch.sym_int": size_int,
    "torch.sym_not": size_not,
    "torch.sym_sqrt": size_sqrt,
    "math.ceil": size_ceil,
    "math.floor": size_floor,
    "math.trunc": size_int,
}


# One part of a tuple or list that an operator returned.
get_item = operator.getitem
