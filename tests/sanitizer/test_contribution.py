"""A channel's contribution to a logit is what the logit loses without it."""

import pytest
import torch

from worker.sanitizer.contribution import logit_contribution
from worker.sanitizer.masks import silenced


@pytest.mark.parametrize("class_index", [2, None])
def test_behind_the_last_convolution_it_is_what_the_logit_loses_without_the_channel(suspect, class_index):
    made = suspect()
    network, site = made.bench.network, made.bench.network.last_conv()
    pixels = made.clean.pixels_NCHW[:50]
    with torch.no_grad():
        before = network(pixels)
        chosen = before.argmax(dim=1) if class_index is None else torch.full((50,), class_index)
        lost = []
        for channel in range(site.num_channels):
            keep = torch.ones(site.num_channels, dtype=torch.bool)
            keep[channel] = False
            with silenced(network, {site.name: keep}):
                lost.append((before - network(pixels)).gather(1, chosen.unsqueeze(1)).double().mean())
    found = logit_contribution(network, network.sites, pixels, class_index)
    torch.testing.assert_close(found[site.name], torch.stack(lost), rtol=1e-3, atol=1e-4)
    assert {name: len(score) for name, score in found.items()} == {s.name: s.num_channels for s in network.sites}


def test_the_network_and_its_gradients_are_left_alone(suspect):
    made = suspect()
    before = made.tensors()
    logit_contribution(made.bench.network, made.bench.network.sites, made.clean.pixels_NCHW[:5], 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.tensors().items())
    parameters = made.bench.network.parameters().values()
    assert all(one.grad is None and one.requires_grad for one in parameters)
