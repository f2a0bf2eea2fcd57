"""Steps keep their answers and pass gradients."""

import pytest
import torch
from torch import fx, nn

from worker.sanitizer.straight_through import STEPS, blind, pass_straight, passing

aten = torch.ops.aten


def graph_of(function):
    return fx.symbolic_trace(function)


@pytest.mark.parametrize("step", sorted(STEPS, key=str), ids=str)
def test_a_step_answers_as_before_and_its_gradient_is_that_of_no_step(step):
    graph = fx.Graph()
    images = graph.placeholder("images")
    graph.output(graph.call_function(step, (graph.call_function(aten.mul.Scalar, (images, 255.0)),)))
    module = fx.GraphModule(nn.Module(), graph)
    value = torch.rand(50, requires_grad=True)
    made = passing(module)
    assert torch.equal(made(value), module(value))
    (gradient,) = torch.autograd.grad(made(value).sum(), value)
    assert torch.equal(gradient, torch.full((50,), 255.0))
    (hidden,) = torch.autograd.grad(module(value).sum(), value)
    assert not bool(hidden.any())


def test_a_graph_without_steps_is_left_as_it_is():
    module = graph_of(lambda images: images * 2)
    assert passing(module) is module


def test_what_rounds_to_whole_numbers_rounds_behind_the_pass_too():
    assert torch.equal(pass_straight(torch.tensor([0.4, 1.6]), aten.round.default), torch.tensor([0.0, 2.0]))


@pytest.mark.parametrize(
    ("cut", "named"),
    [
        (lambda x: (x > 0.5).float(), ["gt.Scalar"]),
        (lambda x: torch.div(x, 0.1, rounding_mode="floor") + x % 0.3, ["div.Tensor_mode", "remainder.Scalar"]),
        (lambda x: x.to(torch.uint8).float(), ["to.dtype"]),
        (lambda x: x.clamp(0, 1).round(), []),
        (lambda x: x * (torch.arange(3) > 1).view(1, 3, 1, 1), []),
    ],
)
def test_what_no_search_sees_behind_is_named_where_it_works_on_the_images(cut, named):
    class Cut(nn.Module):
        def forward(self, x):
            return cut(x).flatten(1)

    graph = torch.export.export(Cut(), (torch.rand(2, 3, 4, 4),)).module()
    assert blind(graph) == named
