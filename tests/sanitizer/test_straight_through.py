"""Steps keep their answers and pass gradients."""

import pytest
import torch
from torch import fx, nn

from worker.sanitizer.straight_through import STEPS, pass_straight, passing

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
