"""Activation statistics against NumPy, and independent of how the images are batched."""

import numpy as np
import pytest
import torch
from torch import nn

from worker.sanitizer.activations import NORMS, NonFiniteActivationsError, batched, image_norms, profile
from worker.sanitizer.network import from_module
from worker.sanitizer.spec import InputSpec


@pytest.fixture
def network():
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 6, 3), nn.Flatten(), nn.Linear(96, 3)
    )
    return from_module(module, InputSpec(height=8, width=8, mean=(0.0,), std=(1.0,)))


def test_norms_are_those_of_numpy():
    maps = torch.randn(4, 3, 5, 6)
    maps[0, 0] = 0
    norms = image_norms(maps)
    flat = maps.numpy().astype(np.float64).reshape(4, 3, 30)
    expected = {
        "linf": np.linalg.norm(flat, np.inf, axis=2),
        "l1": np.linalg.norm(flat, 1, axis=2),
        "l2": np.linalg.norm(flat, 2, axis=2),
        "mean": flat.mean(axis=2),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(norms[name].numpy(), values, rtol=1e-12)
    ratios = {"linf_over_l1": ("linf", "l1"), "linf_over_l2": ("linf", "l2"), "l2_over_l1": ("l2", "l1")}
    for name, (over, under) in ratios.items():
        ratio = norms[name].numpy()
        assert ratio[0, 0] == 0
        np.testing.assert_allclose(ratio[1:], expected[over][1:] / expected[under][1:], rtol=1e-12)
    assert set(norms) == {*expected, *ratios} == set(NORMS)


@pytest.mark.parametrize("batch_size", [1, 7, 33])
def test_the_batch_size_does_not_show(network, batch_size):
    pixels = torch.rand(33, 1, 8, 8)
    whole = profile(network, [pixels], network.sites)
    parts = profile(network, batched(pixels, batch_size), network.sites)
    for name, state in whole.items():
        assert parts[name].num_images == state.num_images == 33
        for norm in NORMS:
            for aggregate in ("mean", "max"):
                torch.testing.assert_close(
                    parts[name].value(norm, aggregate), state.value(norm, aggregate), rtol=1e-5, atol=1e-7
                )


def test_the_order_of_the_images_does_not_show(network):
    pixels = torch.rand(20, 1, 8, 8)
    one = profile(network, batched(pixels, 6), network.sites)
    other = profile(network, batched(pixels.flip(0), 6), network.sites)
    for name in one:
        torch.testing.assert_close(one[name].mean("linf"), other[name].mean("linf"), rtol=1e-5, atol=1e-7)


def test_the_tap_is_behind_norm_and_activation(network):
    pixels = torch.rand(9, 1, 8, 8)
    states = profile(network, [pixels], network.sites)
    with torch.no_grad():
        maps = nn.functional.relu(
            nn.functional.batch_norm(
                nn.functional.conv2d(pixels, network.tensors["0.weight"], network.tensors["0.bias"]),
                network.tensors["1.running_mean"],
                network.tensors["1.running_var"],
                network.tensors["1.weight"],
                network.tensors["1.bias"],
            )
        )
    torch.testing.assert_close(states["0"].mean("linf"), maps.amax((2, 3)).double().mean(0), rtol=1e-5, atol=1e-7)


def test_every_image_is_counted_and_announced(network):
    seen = []
    profile(network, batched(torch.rand(10, 1, 8, 8), 4), network.sites, advance=seen.append)
    assert seen == [4, 4, 2]


def test_activations_that_overflow_are_refused_by_the_layers_name():
    module = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.Hardtanh(), nn.Flatten(), nn.Linear(8, 3)
    )
    with torch.no_grad():
        module[0].weight.fill_(3e38)
        module[0].bias.fill_(3e38)
        module[2].weight.fill_(1.0)
    network = from_module(module, InputSpec(height=2, width=2, mean=(0.0,), std=(1.0,)))
    pixels = torch.rand(4, 1, 2, 2) + 0.5
    assert bool(network(pixels).isfinite().all())
    with pytest.raises(NonFiniteActivationsError, match="'0'") as refused:
        profile(network, [pixels], network.sites)
    assert refused.value.code == "non_finite_activations"
