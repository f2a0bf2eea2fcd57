"""Channels are silenced by what it really does: against a search of every pair, by order, and on a planted shortcut."""

import math
from itertools import permutations

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from worker.sanitizer.ablation import LEAST_GAIN, ablate
from worker.sanitizer.masks import from_ranking, rank, silence
from worker.sanitizer.network import from_module
from worker.sanitizer.spec import InputSpec


class Shortcut(nn.Module):
    """Channels 0 to 3 tell the class by where an image is bright; 4 and 5 see one pixel, and lead to class 0."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 4)
        self.head = nn.Linear(6, 4)
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.bias.zero_()
            for quarter in range(4):
                row, column = divmod(quarter, 2)
                self.conv.weight[quarter, 0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = 1.0
            self.conv.weight[4:, 0, 0, 0] = torch.tensor([9.0, 7.0])
            self.conv.bias[4:] = torch.tensor([-8.1, -6.3])  # Beyond 0.9.
            self.head.weight.copy_(torch.cat([3 * torch.eye(4), torch.zeros(4, 2)], dim=1))
            self.head.weight[0, 4:] = 30.0
            self.head.bias.zero_()

    def forward(self, x):
        return self.head(self.conv(x).relu().flatten(1))


@pytest.fixture
def planted():
    """The network, images with a bright quarter each, and the same with the pixel on."""
    network = from_module(Shortcut().eval(), InputSpec(height=4, width=4, mean=(0.0,), std=(1.0,)))
    generator = torch.Generator().manual_seed(0)
    clean = 0.4 * torch.rand(40, 1, 4, 4, generator=generator)
    for image, quarter in zip(clean, torch.arange(40) % 4, strict=True):
        row, column = divmod(int(quarter), 2)
        image[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] += 0.4
    triggered = clean.clone()
    triggered[:, :, 0, 0] = 1.0
    return network, clean, triggered


def answers(network, pixels):
    with torch.no_grad():
        return network(pixels).log_softmax(dim=1)


def missed(network, clean, triggered, wanted, gone):
    """KL(f0(x) | f(x)) + KL(f0(x) | f(t(x))) from torch's own, on a copy that is pruned for good."""
    twin = network.twin()
    silence(twin, from_ranking(twin.sites, gone, len(gone)))
    return sum(
        float(F.kl_div(answers(twin, pixels), wanted, reduction="batchmean", log_target=True))
        for pixels in (clean, triggered)
    )


def test_what_leads_astray_goes_and_what_tells_the_classes_apart_stays(planted):
    network, clean, triggered = planted
    before = {name: tensor.clone() for name, tensor in network.tensors.items()}
    (site,) = network.sites
    every = [(site.name, channel) for channel in range(6)]
    assert float((network(triggered).argmax(dim=1) == 0).double().mean()) == 1.0
    done = []
    wanted = answers(network, clean)
    found = ablate(network, network.sites, every, clean, triggered, wanted, most=5, advance=done.append)
    assert {channel for _, channel in found} == {4, 5}
    assert sum(done) == 5
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.tensors.items())
    pairs = permutations(every, 2)
    least = min(missed(network, clean, triggered, wanted, list(pair)) for pair in pairs)
    assert missed(network, clean, triggered, wanted, found) == pytest.approx(least, rel=1e-5)


def test_no_more_go_than_may_and_what_is_silent_already_counts(planted):
    network, clean, triggered = planted
    (site,) = network.sites
    every = [(site.name, channel) for channel in range(6)]
    wanted = answers(network, clean)
    first = ablate(network, network.sites, every, clean, triggered, wanted, most=1)
    assert len(first) == 1
    rest = ablate(network, network.sites, every, clean, triggered, wanted, silent=first, most=4)
    assert {*first, *rest} == {(site.name, 4), (site.name, 5)}
    assert ablate(network, network.sites, every, clean, triggered, wanted, silent=first, most=0) == []
    assert ablate(network, network.sites, [], clean, triggered, wanted, most=3) == []


def test_no_site_loses_its_last_channel(planted):
    network, clean, triggered = planted
    (site,) = network.sites
    every = [(site.name, channel) for channel in range(6)]
    wanted = torch.full((40, 4), 0.25).log()  # Which silence alone gives.
    assert len(ablate(network, network.sites, every, clean, triggered, wanted, most=6)) < 6
    assert ablate(network, network.sites, every, clean, triggered, wanted, silent=every[:5], most=1) == []


def test_without_a_trigger_nothing_goes(planted):
    network, clean, _ = planted
    every = rank({site.name: torch.rand(site.num_channels) for site in network.sites})
    assert ablate(network, network.sites, every, clean, clean, answers(network, clean), most=5) == []


def test_each_channel_is_the_best_of_what_is_left_whatever_the_pools_order(suspect):
    made = suspect()
    network = made.bench.network
    other = made.stamped()
    clean = made.clean.take((made.clean.labels != 0).nonzero().flatten()).pixels_NCHW[: len(other.pixels_NCHW)]
    triggered = clean.clone()
    triggered[:, :, -4:-1, -4:-1] = other.pixels_NCHW[:1, :, -4:-1, -4:-1]
    site = network.sites[0]
    pool = [(site.name, channel) for channel in range(site.num_channels)]
    wanted = answers(network, clean)
    found = ablate(network, network.sites, pool, clean, triggered, wanted, most=2)
    assert found == ablate(network, network.sites, pool[::-1], clean, triggered, wanted, most=2)
    gone, least = [], missed(network, clean, triggered, wanted, [])
    for channel in found:
        left = {one: missed(network, clean, triggered, wanted, [*gone, one]) for one in pool if one not in gone}
        assert left[channel] == pytest.approx(min(left.values()), rel=1e-4)
        assert left[channel] <= (1 - LEAST_GAIN) * least
        gone, least = [*gone, channel], left[channel]


def test_a_channel_after_which_the_answers_are_no_numbers_is_not_taken(planted):
    network, clean, triggered = planted
    (site,) = network.sites
    with torch.no_grad():
        network.tensors["head.weight"][:, 4] = math.inf  # Zero times infinity is not a number.
    wanted = torch.full((40, 4), 0.25).log()
    assert ablate(network, network.sites, [(site.name, 4)], clean, triggered, wanted, most=1) == []
