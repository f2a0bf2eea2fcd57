"""A graph without its batch norms answers and learns as the one with them, and norms that stand elsewhere stay."""

import pytest
import torch
from torch import nn

from worker.sanitizer.folding import folded
from worker.sanitizer.network import from_module
from worker.sanitizer.spec import InputSpec

GRAY_8 = InputSpec(height=8, width=8, mean=(0.0,), std=(1.0,))
BATCH_NORM = torch.ops.aten.batch_norm.default


class Foldable(nn.Module):
    """Convolutions with and without bias, grouped, depthwise and padded by name, and a norm without scale and shift."""

    def __init__(self):
        super().__init__()
        convs = [
            nn.Conv2d(1, 8, 3, bias=False),
            nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2),
            nn.Conv2d(8, 8, 3, padding="same", groups=8),
            nn.Conv2d(8, 4, 1),
        ]
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(conv.out_channels, affine=conv.kernel_size != (1, 1)) for conv in convs
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv(x)).tanh()
        return self.head(x.mean((2, 3)))


class NotFoldable(nn.Module):
    """A norm of a sum, one of a convolution that is read again, one of a transposed convolution."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.back = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.first(x)
        x = self.norms[0](x + self.second(x))
        maps = self.second(x)
        x = self.norms[1](maps) + maps
        return self.head(self.norms[2](self.back(x)).mean((2, 3)))


def drawn(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.3)
    return module.eval()


def gradients(answer, module, pixels):
    inputs = pixels.clone().requires_grad_(True)
    module.zero_grad()
    answer(inputs).square().sum().backward()
    return inputs.grad, {name: parameter.grad.clone() for name, parameter in module.named_parameters()}


def norms(graph):
    return [node for node in graph.graph.nodes if node.target is BATCH_NORM]


@pytest.fixture
def pixels():
    return torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("made", "number", "left"), [(Foldable, 4, 0), (NotFoldable, 3, 3)])
def test_answers_and_gradients_are_those_of_the_module(made, number, left, pixels):
    module = drawn(made())
    network = from_module(module, GRAY_8)
    assert (len(norms(network.graph)), len(norms(folded(network.graph)))) == (number, left)
    torch.testing.assert_close(network(pixels), module(pixels))
    wanted_input, wanted = gradients(module, module, pixels)
    given_input, given = gradients(network, module, pixels)
    torch.testing.assert_close(given_input, wanted_input)
    torch.testing.assert_close(given, wanted)


def test_a_change_of_any_tensor_is_seen_at_once_also_by_a_copy(pixels):
    module = drawn(Foldable())
    network = from_module(module, GRAY_8)
    twin, before = network.twin(), network(pixels)
    drawn(module, seed=2)  # the network shares its tensors
    torch.testing.assert_close(network(pixels), module(pixels))
    torch.testing.assert_close(twin(pixels), before)
    twin.load({name: tensor.detach() for name, tensor in module.state_dict().items()})
    torch.testing.assert_close(twin(pixels), module(pixels))


def test_tensors_that_stand_in_for_others_count(pixels):
    module = drawn(Foldable())
    network = from_module(module, GRAY_8)
    gain = torch.zeros(8, requires_grad=True)
    given = network(pixels, {"norms.2.weight": gain})
    with torch.no_grad():
        module.norms[2].weight.zero_()
    torch.testing.assert_close(given, module(pixels))
    given.sum().backward()
    assert bool(gain.grad.abs().sum() > 0)


def test_a_fold_that_would_answer_otherwise_is_not_used(monkeypatch, pixels):
    other = from_module(drawn(Foldable(), seed=3), GRAY_8).graph
    monkeypatch.setattr("worker.sanitizer.network.folded", lambda _: other)
    module = drawn(Foldable())
    torch.testing.assert_close(from_module(module, GRAY_8)(pixels), module(pixels))


def test_a_norm_that_still_learns_its_statistics_stays():
    graph = from_module(drawn(Foldable()), GRAY_8).graph
    for node in norms(graph):
        node.args = (*node.args[:5], True, *node.args[6:])
    assert len(norms(folded(graph))) == len(norms(graph)) == 4


def test_maps_keep_the_networks_memory_layout_from_the_first_one_on(pixels):
    network = from_module(drawn(Foldable()), GRAY_8)
    run = torch.fx.Interpreter(folded(network.graph), garbage_collect_values=False)
    run.run(pixels)
    maps = [value for node, value in run.env.items() if node.target is torch.ops.aten.conv2d.default]
    assert len(maps) == 3  # the fourth is padded by name
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in maps)
    assert not any(value.is_contiguous() for value in maps)
