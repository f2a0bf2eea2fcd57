"""The other memory layout is a matter of speed alone: same answers, and never where a graph does not bear it."""

import pytest
import torch
from torch import nn

from worker.sanitizer.memory_layout import put_channels_last
from worker.sanitizer.network import from_module
from worker.sanitizer.spec import InputSpec

GRAY_8 = InputSpec(height=8, width=8, mean=(0.5,), std=(0.25,))


class Flat(nn.Module):
    """Two convolutions, and a linear layer on all that the second one says at every place."""

    def __init__(self, flatten):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3)
        self.head = nn.Linear(6 * 4 * 4, 3)
        self.flatten = flatten

    def forward(self, x):
        return self.head(self.flatten(self.second(self.first(x).relu())))


def as_view(maps):
    return maps.view(maps.shape[0], 96)


def as_copy(maps):
    return maps.reshape(maps.shape[0], 96)


def by_strides(maps):
    return maps.as_strided((maps.shape[0], 96), (96, 1))


def channels_are_last(network):
    weight = network.tensors["second.weight"]
    return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


@pytest.mark.parametrize(
    ("flatten", "is_laid_out"),
    [
        (as_copy, True),
        (as_view, False),  # does not run in the other layout
        (by_strides, False),  # runs, and answers otherwise
    ],
)
def test_answers_stay_whatever_the_graph_asks_of_memory(flatten, is_laid_out):
    module = Flat(flatten).eval()
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(5, 1, 8, 8, generator=generator)
    with torch.no_grad():
        expected = module((pixels - 0.5) / 0.25)
    network = from_module(module, GRAY_8)
    assert channels_are_last(network) is is_laid_out
    with torch.no_grad():
        torch.testing.assert_close(network(pixels), expected)


def test_maps_follow_the_weights_and_gradients_are_the_same():
    module = Flat(as_copy).eval()
    pixels = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    module((pixels - 0.5) / 0.25).square().sum().backward()
    expected = module.second.weight.grad.clone()
    module.zero_grad()
    network = from_module(module, GRAY_8)
    seen = []
    network.observe(pixels, {network.site("second").tap: seen.append})
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    network(pixels).square().sum().backward()
    torch.testing.assert_close(network.parameters()["second.weight"].grad, expected)


def test_a_graph_that_does_not_run_is_left_to_who_runs_it():
    graph = torch.fx.symbolic_trace(Flat(as_copy))
    before = graph.second.weight.data_ptr()
    put_channels_last(graph, torch.zeros(2, 3, 8, 8), torch.zeros(2, 3))
    assert graph.second.weight.data_ptr() == before
