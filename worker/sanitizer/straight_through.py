"""Let gradients through operators that round: a search must be able to look behind them.

The gradient of a step is zero, so that a network which rounds its images to 256 levels, as 8-bit preprocessing inside a
graph does, would hide from every search. Its answers are left as they are; the gradient is taken as if nothing were
rounded. Source: Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
Computation", arXiv 1308.3432.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten

STEPS = frozenset({aten.round.default, aten.floor.default, aten.ceil.default, aten.trunc.default, aten.sign.default})


def passing(graph: fx.GraphModule) -> fx.GraphModule:
    """A graph of the same answers on the same tensors whose steps pass gradients; the graph itself if it has none."""
    if not any(node.target in STEPS for node in graph.graph.nodes):
        return graph
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph.graph, {}))
    for node in copy.nodes:
        if node.target in STEPS:
            node.args, node.target = (*node.args, node.target), pass_straight
    return fx.GraphModule(graph, copy)


def pass_straight(value: Tensor, step: Any) -> Tensor:  # noqa: ANN401 - an operator
    """What the step makes of a value, with the gradient of the value itself."""
    passed: Tensor = _Straight.apply(value, step)  # type: ignore[no-untyped-call]
    return passed


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, value: Tensor, step: Any) -> Tensor:  # noqa: ANN401 - as torch calls it
        stepped: Tensor = step(value)
        return stepped

    @staticmethod
    def backward(_ctx: Any, *gradients: Any) -> tuple[Tensor, None]:  # noqa: ANN401 - as torch calls it
        return gradients[0], None
