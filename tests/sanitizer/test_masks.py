"""Masks: nested, never a whole layer, and undone bit by bit."""

import pytest
import torch
from torch import nn

from worker.sanitizer import masks
from worker.sanitizer.network import from_module
from worker.sanitizer.spec import InputSpec

SCORES = {"a": torch.tensor([0.5, 3.0, -1.0]), "b": torch.tensor([2.0, 2.0])}


@pytest.fixture
def network():
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(32, 2))
    return from_module(module, InputSpec(height=8, width=8, mean=(0.0,), std=(1.0,)))


def test_the_ranking_is_by_score_and_spares_one_channel_of_each_layer():
    assert masks.rank(SCORES) == [("a", 1), ("b", 0), ("a", 0)]
    assert masks.rank(SCORES, descending=False) == [("a", 2), ("a", 0), ("b", 0)]


def test_masks_of_a_ranking_are_nested(network):
    scores = {site.name: torch.rand(site.num_channels) for site in network.sites}
    ranking = masks.rank(scores)
    previous = masks.from_ranking(network.sites, ranking, 0)
    assert masks.num_pruned(previous) == 0
    for count in range(1, len(ranking) + 1):
        current = masks.from_ranking(network.sites, ranking, count)
        assert masks.num_pruned(current) == count
        assert all(bool((previous[name] | ~current[name]).all()) for name in current)
        previous = current


def test_an_error_inside_the_block_restores_the_weights(network):
    before = network.tensors["0.weight"].clone()
    with pytest.raises(KeyError), masks.silenced(network, {"0": torch.tensor([False, True, True])}):
        raise KeyError
    assert torch.equal(network.tensors["0.weight"], before)
