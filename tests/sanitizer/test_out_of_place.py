"""Writes that nobody else can see become new values; the others stay."""

import pytest
import torch
from torch import fx, nn

from worker.sanitizer.out_of_place import out_of_place

aten = torch.ops.aten


class Kept(nn.Module):
    """Overwrites what the gradient of its activation needs."""

    def forward(self, x):
        maps = torch.sigmoid(x)
        maps += 2 * maps
        maps.mul_(3)
        return torch.relu_(maps - 1).flatten(1) + maps.flatten(1)


class Shared(nn.Module):
    """Writes into a value of which a view was taken before, and into a view."""

    def forward(self, x):
        maps = torch.sigmoid(x)
        seen = maps.view(len(x), -1)
        maps += 1
        part = maps[:, :1]
        part *= 2
        return seen + maps.flatten(1)


def exported(module):
    graph = torch.export.export(module, (torch.rand(2, 3, 4, 4),)).module()
    for node in list(graph.graph.nodes):
        if node.op == "call_module":
            graph.graph.erase_node(node)
    output = next(iter(graph.graph.find_nodes(op="output")))
    output.args = (output.args[0][0],)
    graph.graph.set_codegen(fx.graph.CodeGen())
    graph.recompile()
    return graph


def in_place(graph):
    return [node for node in graph.graph.nodes if str(node.target).partition(".")[2].partition(".")[0].endswith("_")]


@pytest.mark.parametrize(("module", "left"), [(Kept(), 0), (Shared(), 2)])
def test_the_answers_stay_and_only_private_writes_go(module, left):
    graph = exported(module)
    before = len(in_place(graph))
    images = torch.rand(2, 3, 4, 4)
    made = out_of_place(graph)
    assert torch.equal(made(images.clone()), module(images.clone()))
    assert len(in_place(made)) == left
    assert len(in_place(graph)) == before > 0


def test_a_gradient_that_was_written_over_is_there_again():
    images = torch.rand(2, 3, 4, 4, requires_grad=True)
    graph = exported(Kept())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(graph(images).sum(), images)
    (gradient,) = torch.autograd.grad(out_of_place(graph)(images).sum(), images)
    wide = images.detach().double().requires_grad_(True)
    maps = 9 * wide.sigmoid()
    (expected,) = torch.autograd.grad((torch.relu(maps - 1) + maps).sum(), wide)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-5)
