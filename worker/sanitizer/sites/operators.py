"""Which aten operators are layers, norms, activations and mere rearrangements, and where their arguments are.

Shapes: C channels.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx

aten = torch.ops.aten

CONVOLUTIONS = frozenset({aten.conv2d.default, aten.conv2d.padding, aten.convolution.default})
OTHER_CONVOLUTIONS = frozenset(
    {
        *(aten.conv_transpose2d.input, aten.conv_transpose1d.default, aten.conv_transpose3d.input),
        *(aten.conv1d.default, aten.conv1d.padding, aten.conv3d.default, aten.conv3d.padding),
    }
)
# Each maps zero to zero, so a silenced channel stays silent behind it.
ACTIVATIONS = frozenset(
    {
        *(aten.relu.default, aten.relu_.default, aten.relu6.default, aten.relu6_.default),
        *(aten.leaky_relu.default, aten.leaky_relu_.default, aten.elu.default, aten.elu_.default),
        *(aten.silu.default, aten.silu_.default, aten.gelu.default, aten.mish.default, aten.mish_.default),
        *(aten.hardtanh.default, aten.hardtanh_.default, aten.hardswish.default, aten.hardswish_.default),
        *(aten.tanh.default, aten.tanh_.default, aten.selu.default, aten.selu_.default),
        *(aten.celu.default, aten.celu_.default, aten.gelu_.default),
        *(aten.prelu.default, aten._prelu_kernel.default, aten.softshrink.default),  # noqa: SLF001 - an overload
    }
)
# Activations with a slope of each channel's own.
PARAMETRIC = frozenset({aten.prelu.default, aten._prelu_kernel.default})  # noqa: SLF001 - an overload
IDENTITIES = frozenset(
    {
        *(aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default, aten.alias.default),
        *(aten.to.dtype, aten._to_copy.default),  # noqa: SLF001 - an overload
    }
)
# What activations are spelt with in graphs that do not know them by name, and gates.
ELEMENTWISE = frozenset(
    {
        *(aten.sigmoid.default, aten.sigmoid_.default, aten.hardsigmoid.default, aten.hardsigmoid_.default),
        *(aten.erf.default, aten.exp.default, aten.softplus.default, aten.abs.default, aten.neg.default),
        *(aten.clamp.default, aten.clamp_.default, aten.clamp_min.default, aten.clamp_max.default),
        *(aten.clamp.Tensor, aten.maximum.default, aten.minimum.default),
        *(aten.pow.Tensor_Scalar, aten.pow.Tensor_Tensor, aten.square.default, aten.sqrt.default, aten.log1p.default),
        *(aten.mul.Tensor, aten.mul_.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div_.Tensor, aten.div.Scalar),
        *(aten.add.Tensor, aten.add_.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar, aten.rsub.Scalar),
        *(aten.relu.default, aten.tanh.default),
    }
)
# Of these a graph of scalings and shifts alone is made: no activation.
LINEAR_ELEMENTWISE = frozenset(
    {
        *(aten.mul.Scalar, aten.div.Scalar, aten.add.Scalar, aten.sub.Scalar, aten.rsub.Scalar, aten.neg.default),
        *(aten.mul.Tensor, aten.mul_.Tensor, aten.div.Tensor, aten.div_.Tensor),
        *(aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor),
    }
)
HEAD_TAIL = frozenset(
    {
        *(aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default, aten.mean.dim, aten.dropout.default),
        *(aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten.squeeze.dim, aten.squeeze.dims),
    }
)
# They put elements elsewhere and make none.
REARRANGEMENTS = frozenset(
    {
        *(aten.view.default, aten.reshape.default, aten.reshape_as.default, aten._unsafe_view.default),  # noqa: SLF001
        *(aten.flatten.using_ints, aten.unflatten.int, aten.permute.default, aten.transpose.int, aten.t.default),
        *(aten.contiguous.default, aten.clone.default, aten.alias.default, aten.expand.default, aten.roll.default),
        *(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten.movedim.int),
        *(aten.select.int, aten.slice.Tensor, aten.unbind.int, aten.chunk.default, aten.swapaxes.default),
        *(aten.split.Tensor, aten.split_with_sizes.default, aten.dropout.default, aten.detach.default),
    }
)
# Where the scale is, and whether the result is the first of a tuple's.
CHANNEL_NORMS = {
    aten.group_norm.default: (2, False),
    aten.native_group_norm.default: (1, True),
    aten.instance_norm.default: (1, False),
}
# Whether there is a shift behind the scale, and whether the result is the first of a tuple's.
LAYER_NORMS = {
    aten.layer_norm.default: (True, False),
    aten.native_layer_norm.default: (True, True),
    aten.rms_norm.default: (False, False),
}
SPLITS = frozenset({aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int})
SHAPE_READERS = frozenset({aten.sym_size.int, aten.sym_numel.default})
ATTENTIONS = frozenset({aten.scaled_dot_product_attention.default})
PRODUCTS = frozenset({aten.matmul.default, aten.bmm.default})
SOFTMAXES = frozenset({aten.softmax.int, aten._softmax.default})  # noqa: SLF001 - an overload


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution or a linear layer.

    Attributes:
        kind: Which of the two.
        node: Where it is called.
        end: The node of its result, behind a bias that is added apart.
        weight: The node of its weight.
        weight_axis: The axis of the stored weight along which output channels lie.
        bias: The node of its bias, None without one.
        axis: The channels' axis in its result.
    """

    kind: Literal["conv", "linear"]
    node: fx.Node
    end: fx.Node
    weight: fx.Node
    weight_axis: int
    bias: fx.Node | None
    axis: int


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm: batch norms here are those that use stored statistics, the others mix what they read.

    Attributes:
        kind: Which.
        node: Where it is called.
        end: The node of its result.
        scale: The node of its scale, None without one.
        shift: The node of its shift, None without one.
        mean: The node of the running mean of a batch norm.
        axis: The channels' axis, None where it norms over more than its channels.
        eps: Under the root.
    """

    kind: Literal["batch", "group", "layer"]
    node: fx.Node
    end: fx.Node
    scale: fx.Node | None
    shift: fx.Node | None
    mean: fx.Node | None
    axis: int | None
    eps: float


def layer(node: fx.Node) -> Layer | None:
    """The layer that is called here, None where it is none."""
    if node.target in CONVOLUTIONS:
        weight = _node(node, 1)
        return None if weight is None else Layer("conv", node, node, weight, 0, _node(node, 2), 1)
    if node.target is aten.linear.default:
        weight = _node(node, 1)
        return None if weight is None else Layer("linear", node, node, weight, 0, _node(node, 2), _last(node))
    if node.target is aten.addmm.default:
        found = _transposed(_node(node, 2))
        return None if found is None else Layer("linear", node, node, *found, _node(node, 0), 1)
    if node.target in {aten.mm.default, aten.matmul.default}:
        found = _transposed(_node(node, 1))
        if found is None:
            return None
        end, bias = _added(node)
        return Layer("linear", node, end, *found, bias, _last(node))
    return None


def norm(node: fx.Node | None) -> Norm | None:
    """The norm that is called here, None where it is none or where a batch norm uses the batch's own statistics."""
    if node is None or node.op != "call_function":
        return None
    target = node.target
    if target is aten.batch_norm.default:
        is_stored = node.args[5] is False and parameter(_node(node, 3)) is not None
        found = Norm("batch", node, node, _node(node, 1), _node(node, 2), _node(node, 3), 1, _number(node, 7))
        return found if is_stored else None
    if target is aten._native_batch_norm_legit_no_training.default:  # noqa: SLF001 - an overload
        return _unpacked(Norm("batch", node, node, _node(node, 1), _node(node, 2), _node(node, 3), 1, _number(node, 6)))
    if target in CHANNEL_NORMS:
        position, is_packed = CHANNEL_NORMS[target]
        found = Norm("group", node, node, _node(node, position), _node(node, position + 1), None, 1, 0.0)
        return _unpacked(found) if is_packed else found
    if target in LAYER_NORMS:
        has_shift, is_packed = LAYER_NORMS[target]
        shape = node.args[1]
        axis = _last(node.all_input_nodes[0]) if isinstance(shape, (list, tuple)) and len(shape) == 1 else None
        found = Norm("layer", node, node, _node(node, 2), _node(node, 3) if has_shift else None, None, axis, 0.0)
        return _unpacked(found) if is_packed else found
    return None


def parameter(node: fx.Node | None) -> str | None:
    """The name of the tensor that the node reads, None where its value is computed."""
    return str(node.target) if node is not None and node.op == "get_attr" else None


def readers(node: fx.Node) -> list[fx.Node]:
    """The nodes that read the node's value, and not merely its shape."""
    return [user for user in node.users if user.target not in SHAPE_READERS and not _is_shape_only(user, node)]


def only_reader(node: fx.Node) -> fx.Node | None:
    """The one reader of the node's value, None where there are more."""
    found = readers(node)
    return found[0] if len(found) == 1 else None


def shape(node: fx.Node) -> tuple[int, ...] | None:
    """The shape of the node's value for the example batch, None where it is no tensor or not known."""
    return sizes(node.meta.get("val"))


def sizes(value: Any) -> tuple[int, ...] | None:  # noqa: ANN401 - what a graph may hold
    """The shape of a value, its symbolic sizes replaced by those of the example."""
    if not isinstance(value, Tensor):
        return None
    found = [size(one) for one in value.shape]
    return None if None in found else tuple(one for one in found if one is not None)


def size(value: Any) -> int | None:  # noqa: ANN401 - what a graph may hold
    """An integer, or the example's value of a symbolic one, None where there is none."""
    if isinstance(value, int):
        return value
    return value.node.hint if isinstance(value, torch.SymInt) and value.node.has_hint() else None


def _unpacked(found: Norm) -> Norm | None:
    """The norm whose result is the first of a tuple's."""
    firsts = [user for user in found.node.users if user.target is operator.getitem and user.args[1] == 0]
    if len(firsts) != 1:
        return None
    return Norm(
        found.kind, found.node, firsts[0], found.scale, found.shift, found.mean, found.axis, found.eps
    )  # fmt: skip


def _transposed(node: fx.Node | None) -> tuple[fx.Node, int] | None:
    """The stored matrix behind an (in, out) operand, and its axis of outputs."""
    if node is None or len(shape(node) or ()) != 2:
        return None
    if node.op == "get_attr":
        return node, 1
    swaps = {aten.t.default: [], aten.permute.default: [[1, 0]], aten.transpose.int: [0, 1], aten.numpy_T.default: []}
    source = node.args[0] if node.args else None
    if node.target not in swaps or not isinstance(source, fx.Node) or source.op != "get_attr":
        return None
    given = [list(one) if isinstance(one, (list, tuple)) else one for one in node.args[1:]]
    is_swap = given == swaps[node.target] or sorted(map(str, given)) in [["0", "1"], ["-1", "-2"]]
    return (source, 0) if is_swap else None


def _added(node: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    """A product's result, behind the stored vector that is added to it alone."""
    user = only_reader(node)
    if user is None or user.target is not aten.add.Tensor or user.kwargs:
        return node, None
    others = [one for one in user.args if one is not node]
    bias = others[0] if len(others) == 1 else None
    if not isinstance(bias, fx.Node) or bias.op != "get_attr" or shape(bias) != (shape(node) or (0,))[-1:]:
        return node, None
    return user, bias


def _is_shape_only(user: fx.Node, node: fx.Node) -> bool:
    return user.target is aten.reshape_as.default and user.args[0] is not node


def _node(node: fx.Node, position: int) -> fx.Node | None:
    argument = node.args[position] if len(node.args) > position else None
    return argument if isinstance(argument, fx.Node) else None


def _number(node: fx.Node, position: int) -> float:
    value = node.args[position]
    assert isinstance(value, (int, float))
    return float(value)


def _last(node: fx.Node) -> int:
    return len(shape(node) or (0, 0)) - 1
