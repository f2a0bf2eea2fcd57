"""The values before each batch norm, against NumPy on the convolution's own output."""

import numpy as np
import pytest
import torch
from torch import nn

from worker.sanitizer.activations import batched
from worker.sanitizer.architectures import build
from worker.sanitizer.network import from_module
from worker.sanitizer.norm_inputs import moments, peaks
from worker.sanitizer.spec import ArchitectureSpec, InputSpec

GRAY_8 = InputSpec(height=8, width=8, mean=(0.5,), std=(0.25,))


@pytest.fixture
def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, eps=1e-3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 2))


@pytest.mark.parametrize("batch_size", [1, 4, 20])
def test_moments_are_those_of_numpy_whatever_the_batch(module, batch_size):
    network = from_module(module, GRAY_8)
    pixels = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    before = module[0]((pixels - 0.5) / 0.25).detach().double().numpy()
    seen = moments(network, batched(pixels, batch_size), network.sites)["0"]
    np.testing.assert_allclose(seen.mean().numpy(), before.mean(axis=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(seen.variance().numpy(), before.var(axis=(0, 2, 3)), rtol=1e-5)
    largest = peaks(network, batched(pixels, batch_size), network.sites)["0"]
    np.testing.assert_allclose(largest.numpy(), before.max(axis=(2, 3)), rtol=1e-5)


def test_a_site_knows_its_norms_input_and_epsilon(module):
    (site,) = from_module(module, GRAY_8).sites
    assert site.norm_input is not None
    assert site.norm_eps == pytest.approx(1e-3)
    bare = from_module(nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(108, 2)), GRAY_8)
    assert bare.sites[0].norm_input is None


def test_a_norm_that_reads_a_sum_is_seen_too():
    network = from_module(
        build(ArchitectureSpec(name="preact_resnet18", num_classes=4, in_channels=1)),
        InputSpec(height=16, width=16, mean=(0.5,), std=(0.5,)),
    )
    sites = [site for site in network.sites if site.norm_input is not None]
    assert {site.kind for site in sites} == {"conv", "norm"}
    seen = moments(network, [torch.rand(2, 1, 16, 16)], sites)
    assert set(seen) == {site.name for site in sites}
