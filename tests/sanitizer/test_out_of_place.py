"""Writes that nobody else can see become new values; the others stay."""

import pytest
import torch
from torch import fx, nn

from worker.sanitizer import checkpoint
from worker.sanitizer.network import from_graph
from worker.sanitizer.out_of_place import out_of_place
from worker.sanitizer.spec import InputSpec

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


class Hidden(nn.Module):
    """Writes into a value whose memory is another's, though no schema says so."""

    def __init__(self, share):
        super().__init__()
        self.share = share

    def forward(self, x):
        maps = torch.sigmoid(x)
        other = self.share(maps)
        other.mul_(maps)
        return (torch.sigmoid(maps) + other).flatten(1)


@pytest.mark.parametrize(
    "share",
    [
        lambda maps: maps.type_as(maps),
        lambda maps: aten._unsafe_view(maps, list(maps.shape)),
        lambda maps: torch.einsum("bchw->bchw", maps),
        lambda maps: torch.dropout(maps, 0.5, train=False),
        lambda maps: maps.reshape(maps.shape),
    ],
)
def test_memory_that_may_be_anothers_is_written_as_before(share):
    module = Hidden(share)
    images = torch.rand(2, 3, 4, 4)
    graph = exported(module)
    assert torch.equal(out_of_place(graph)(images), module(images))


def test_a_write_of_another_type_stays():
    class Mixed(nn.Module):
        def forward(self, x):
            maps = torch.sigmoid(x)
            maps += maps.double()
            return maps.flatten(1)

    images = torch.rand(2, 3, 4, 4)
    made = out_of_place(exported(Mixed()))
    assert made(images).dtype == torch.float32
    assert len(in_place(made)) == 1


class Trained(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x):
        maps = torch.tanh(self.conv(x))
        maps += 2 * maps
        return self.head(maps.mean((2, 3)))


def test_a_program_that_writes_over_its_gradient_is_searched_and_may_be_capped(tmp_path):
    module = Trained().eval()
    program = torch.export.export(module, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, tmp_path / "in_place.pt2")
    found = checkpoint.read(tmp_path / "in_place.pt2").program
    network = from_graph(found.graph, InputSpec(height=8, width=8, mean=(0.0,) * 3, std=(1.0,) * 3), found.batch_size)
    images = torch.rand(3, 3, 8, 8, requires_grad=True)
    torch.testing.assert_close(network(images), module(images), rtol=1e-5, atol=1e-5)
    assert torch.autograd.grad(network(images).square().sum(), images)[0].abs().mean() > 0
    assert not any(str(node.target).startswith("aten.add_.") for node in network.graph.graph.nodes)
