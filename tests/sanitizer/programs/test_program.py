"""Tensors under names that a module can carry, in float32, tied where they were tied."""

import pytest
import torch
from torch import fx, nn

from worker.sanitizer.programs import hold
from worker.sanitizer.refusals import ProgramTensorNameError


def test_parameters_learn_and_buffers_do_not():
    root = hold(
        {"a.0.weight": torch.ones(2).bfloat16(), "a.0.mean": torch.ones(2).double(), "a.steps": torch.tensor(3)},
        {"a.0.weight", "a.steps"},
    )
    assert {name: tensor.dtype for name, tensor in root.named_parameters()} == {"a.0.weight": torch.float32}
    assert {name: tensor.dtype for name, tensor in root.named_buffers()} == {
        "a.0.mean": torch.float32,
        "a.steps": torch.int64,
    }


def test_the_memory_is_its_own_and_ties_stay():
    weight = torch.ones(2)
    root = hold({"a": weight, "b": weight, "c": weight.clone()}, {"a", "b", "c"})
    with torch.no_grad():
        root.a.zero_()
    assert root.b is root.a
    assert weight.tolist() == root.c.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "names",
    [
        ["a b"],
        ['a").real or self.b("'],
        ["a'"],
        ["a\nb"],
        ["a.{}"],
        [""],
        ["."],
        ["a..b"],
        [".a"],
        ["é"],
        ["a", "a.b"],
        ["a.b", "a"],
        ["forward"],
        ["a.training"],
        ["a._parameters"],
        ["__class__"],
        ["graph.weight"],
        ["code"],
        ["class"],
        ["a.if.b"],
        [".".join("a" * 61)],
        ["a" * 501],
    ],
)
def test_a_name_that_could_be_more_than_a_name_is_refused(names):
    with pytest.raises(ProgramTensorNameError) as caught:
        hold({name: torch.zeros(1) for name in names}, set())
    assert caught.value.code == "program_tensor_name"


def test_what_is_held_runs_under_its_names():
    root = hold({"0.weight": torch.ones(1), "print": torch.ones(1), "match.block1-0": torch.ones(1)}, {"0.weight"})
    graph = fx.Graph()
    image = graph.placeholder("images")
    for name in ("0.weight", "print", "match.block1-0"):
        image = graph.call_function(torch.add, (image, graph.create_node("get_attr", name)))
    graph.output(image)
    module = fx.GraphModule(root, graph)
    assert module(torch.zeros(1)).item() == 3
    assert isinstance(dict(module.named_parameters())["0.weight"], nn.Parameter)
