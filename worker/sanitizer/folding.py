"""Work out batch norms on the weights of the convolutions before them: the same answers in less time.

Shapes: M output channels.
"""

from __future__ import annotations

import torch
from torch import fx

from worker.sanitizer.sites.operators import CONVOLUTIONS

aten = torch.ops.aten


def folded(graph: fx.GraphModule) -> fx.GraphModule:
    """A graph of the same function on the same tensors, without batch norms that follow a convolution of their own.

    γ (W x + b - μ) / √(σ² + ε) + β is a convolution by the weight s W and the bias s (b - μ) + β, s = γ / √(σ² + ε).
    Both are worked out in the graph at every call, from the tensors as they then are, so gradients reach W, b, γ and β
    as before. Maps are larger than weights, so it is faster forwards and back. What lies between the two is not there
    any more: to observe, take the graph itself. Of a graph from a stranger's file ask whether it still answers alike.
    """
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph.graph, {}))
    is_channels_last = any(_is_channels_last(tensor) for tensor in graph.parameters())
    for norm in list(copy.nodes):
        if _folds(norm):
            _fold(copy, norm, is_channels_last=is_channels_last)
    return fx.GraphModule(graph, copy)


def _is_channels_last(tensor: torch.Tensor) -> bool:
    """Whether it is, and not both: with one channel, or one pixel, the two layouts are the same."""
    if tensor.dim() != 4:
        return False
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def _folds(norm: fx.Node) -> bool:
    if norm.target is not aten.batch_norm.default or norm.kwargs or norm.args[5] is not False:
        return False
    conv, (gain, shift, mean, variance) = norm.args[0], norm.args[1:5]
    return (
        isinstance(conv, fx.Node)
        and conv.target in CONVOLUTIONS
        and len(conv.users) == 1
        and not conv.kwargs
        # Not a transposed one, whose weight has its output channels elsewhere.
        and (conv.target is not aten.convolution.default or conv.args[6] is False)
        # Stored tensors can be read again at the convolution's place in the graph; others may not be there yet.
        and all(_is_stored(tensor) for tensor in (mean, variance))
        and all(tensor is None or _is_stored(tensor) for tensor in (gain, shift))
    )


def _is_stored(value: fx.node.Argument) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr"


def _fold(graph: fx.Graph, norm: fx.Node, *, is_channels_last: bool) -> None:
    conv, (gain, shift, mean, variance), eps = norm.args[0], norm.args[1:5], norm.args[7]
    assert isinstance(conv, fx.Node)
    inputs, weight, *rest = conv.args
    bias, *rest = rest or [None]
    with graph.inserting_before(conv):

        def read(tensor: fx.node.Argument) -> fx.Node:
            assert isinstance(tensor, fx.Node)
            return graph.node_copy(tensor)

        def call(target: torch._ops.OpOverload, *args: fx.node.Argument) -> fx.Node:
            return graph.call_function(target, args)

        scale_M = call(aten.rsqrt.default, call(aten.add.Scalar, read(variance), eps))
        if gain is not None:
            scale_M = call(aten.mul.Tensor, scale_M, read(gain))
        centred_M = read(mean) if bias is None else call(aten.sub.Tensor, read(mean), bias)
        scaled_M = call(aten.mul.Tensor, centred_M, scale_M)
        bias_M = call(aten.neg.default, scaled_M)
        if shift is not None:
            bias_M = call(aten.add.Tensor, bias_M, read(shift))
        weight_M = call(aten.mul.Tensor, weight, call(aten.reshape.default, scale_M, [-1, 1, 1, 1]))
        if is_channels_last:
            # The product of a weight for one channel, whose layout is either, would come out in the other one.
            weight_M = graph.call_function(aten.clone.default, (weight_M,), {"memory_format": torch.channels_last})
        made = graph.create_node("call_function", conv.target, (inputs, weight_M, bias_M, *rest))
    norm.replace_all_uses_with(made)
    graph.erase_node(norm)
    graph.erase_node(conv)
