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
# Operators whose answers no gradient passes, and that nothing passes it around.
BLIND = frozenset(
    {
        *(aten.eq.Scalar, aten.eq.Tensor, aten.ne.Scalar, aten.ne.Tensor, aten.lt.Scalar, aten.lt.Tensor),
        *(aten.le.Scalar, aten.le.Tensor, aten.gt.Scalar, aten.gt.Tensor, aten.ge.Scalar, aten.ge.Tensor),
        *(aten.div.Tensor_mode, aten.div.Scalar_mode, aten.floor_divide.default, aten.floor_divide.Scalar),
        *(aten.remainder.Scalar, aten.remainder.Tensor, aten.fmod.Scalar, aten.fmod.Tensor, aten.frac.default),
        *(aten.argmax.default, aten.argmin.default, aten.argsort.default, aten.one_hot.default),
        *(aten.isnan.default, aten.isinf.default),
    }
)


def blind(graph: fx.GraphModule) -> list[str]:
    """The operators, by their names, that work on the images where no gradient passes: a search does not see behind."""
    of_images: set[fx.Node] = set()
    found: set[str] = set()
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            of_images.add(node)
        elif any(source in of_images for source in node.all_input_nodes) and node.target is not aten.sym_size.int:
            of_images.add(node)
            if node.target in BLIND or _is_cast_to_whole(node):
                found.add(str(node.target).removeprefix("aten."))
    return sorted(found)


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


def _is_cast_to_whole(node: fx.Node) -> bool:
    value = node.meta.get("val")
    source = node.args[0].meta.get("val") if node.args and isinstance(node.args[0], fx.Node) else None
    if not isinstance(value, Tensor) or not isinstance(source, Tensor):
        return False
    return source.is_floating_point() and not value.is_floating_point()


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
