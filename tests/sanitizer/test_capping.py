"""Bounds of activations in the internal view: what they do to the answers, and that they come off again."""

import numpy as np
import pytest
import torch
from torch import fx, nn

from worker.sanitizer.network import from_module
from worker.sanitizer.repair import snapshot
from worker.sanitizer.spec import InputSpec

GRAY_8 = InputSpec(height=8, width=8, mean=(0.5,), std=(0.25,))


@pytest.fixture
def module():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 4))
    with torch.no_grad():
        made[1].running_mean.uniform_(-0.3, 0.3)
        made[1].running_var.uniform_(0.1, 0.3)
    return made.eval()


@pytest.fixture
def pixels():
    return torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))


CAP = torch.tensor([0.2, 0.0, 5.0])


def by_numpy(module, pixels):
    """The logits with the activations bounded, the head worked out by NumPy."""
    with torch.no_grad():
        maps = module[:3]((pixels - 0.5) / 0.25).numpy()
    bounded = np.minimum(maps, CAP.numpy()[:, None, None]).reshape(len(maps), -1)
    return bounded @ module[4].weight.detach().numpy().T + module[4].bias.detach().numpy()


def test_bounded_activations_give_the_logits_that_numpy_works_out(module, pixels):
    network = from_module(module, GRAY_8)
    network.cap({"0": CAP})
    with torch.no_grad():
        np.testing.assert_allclose(network(pixels).numpy(), by_numpy(module, pixels), atol=1e-5)
        # The graph that is observed and the one that is called are bounded alike, before the tap nothing is.
        seen = {}
        observed = network.observe(pixels, {network.sites[0].tap: lambda value: seen.update(tap=value)})
    np.testing.assert_allclose(observed.numpy(), by_numpy(module, pixels), atol=1e-5)
    assert seen["tap"].amax(dim=(0, 2, 3))[1] > 0


def test_another_bound_replaces_the_first_and_lifting_it_gives_the_old_answers(module, pixels):
    network = from_module(module, GRAY_8)
    with torch.no_grad():
        before = network(pixels)
        network.cap({"0": torch.zeros(3)})
        nodes = len(network.graph.graph.nodes)
        assert not torch.equal(network(pixels), before)
        network.cap({"0": CAP})
        assert len(network.graph.graph.nodes) == nodes
        np.testing.assert_allclose(network(pixels).numpy(), by_numpy(module, pixels), atol=1e-5)
        network.bounds.lift()
        assert torch.equal(network(pixels), before)


def test_bounds_are_tensors_that_snapshots_twins_and_gradients_know(module, pixels):
    network = from_module(module, GRAY_8)
    network.cap({"0": CAP})
    kept, twin = snapshot(network), network.twin()
    (name,) = network.bounds.tensors()
    network.bounds.lift()
    with torch.no_grad():
        np.testing.assert_allclose(twin(pixels).numpy(), by_numpy(module, pixels), atol=1e-5)
        network.load(kept)
        np.testing.assert_allclose(network(pixels).numpy(), by_numpy(module, pixels), atol=1e-5)
    asked = CAP.view(3, 1, 1).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(pixels, {name: asked}).sum(), asked)
    # The third bound is never reached, so nothing hangs on it.
    assert (gradient.flatten() != 0).tolist() == [True, True, False]
    assert name not in network.parameters(), "no training may move a bound"


def test_a_network_of_weights_alone_has_no_place_for_bounds(module):
    network = from_module(module, GRAY_8)
    assert network.value_names() == {}
    network.cap({"0": CAP})
    assert network.bounds.by_value() == {}


def test_bounds_on_many_layers_cost_one_compilation(module, monkeypatch):
    network = from_module(nn.Sequential(*(nn.Conv2d(1, 1, 1) for _ in range(20)), module), GRAY_8)
    compiled = []
    recompile = fx.GraphModule.recompile
    monkeypatch.setattr(fx.GraphModule, "recompile", lambda graph: (compiled.append(1), recompile(graph))[1])
    network.cap({site.name: torch.ones(site.num_channels) for site in network.sites})
    assert len(network.bounds.tensors()) == len(network.sites) > 20
    # Of the graph itself, and of the quick one that is made of it.
    assert len(compiled) <= 4
    compiled.clear()
    network.cap({site.name: torch.zeros(site.num_channels) for site in network.sites})
    assert compiled == []
