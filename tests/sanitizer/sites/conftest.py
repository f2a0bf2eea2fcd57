"""What every site promises, as a check that each test may run on any network."""

import pytest
import torch

from worker.sanitizer import masks
from worker.sanitizer.network import from_module
from worker.sanitizer.spec import InputSpec


def randomised(module, seed=0):
    """The module with every norm, scale and bias away from the values that would hide a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point() and (tensor.dim() < 2 or not tensor.abs().max() > 1e-4):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + 0.2)
    return module


@pytest.fixture(scope="session")
def view():
    """`view(module, side=16)`: the internal view of a module on RGB images."""

    def make(module, side=16):
        spec = InputSpec(height=side, width=side, mean=(0.5,) * 3, std=(0.25,) * 3)
        return from_module(randomised(module), spec)

    return make


@pytest.fixture(scope="session")
def keeps_its_promises():
    """A check: silenced channels are zero at the tap, others as before, the logits others, and all bits come back."""

    def check(network, sites=None, side=16):
        generator = torch.Generator().manual_seed(1)
        pixels = torch.rand(2, 3, side, side, generator=generator)
        before = {name: tensor.clone() for name, tensor in network.tensors.items()}

        def look(site):
            seen = []
            logits = network.observe(pixels, {site.tap: lambda value: seen.append(site.maps(value).clone())})
            return seen[0], logits

        with torch.no_grad():
            for site in network.sites if sites is None else sites:
                keep_C = torch.rand(site.num_channels, generator=generator) > 0.4
                keep_C[0], keep_C[-1] = False, True
                loud, logits = look(site)
                assert loud.shape[:2] == (2, site.num_channels), site.name
                with masks.silenced(network, {site.name: keep_C}):
                    silent, changed = look(site)
                assert not silent[:, ~keep_C].any(), site.name
                assert torch.equal(silent[:, keep_C], loud[:, keep_C]), site.name
                assert loud[:, ~keep_C].any(), site.name
                assert not torch.equal(logits, changed), site.name
                assert all(torch.equal(before[name], tensor) for name, tensor in network.tensors.items()), site.name
                assert torch.equal(look(site)[1], logits), site.name

    return check
