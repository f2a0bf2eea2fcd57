"""Scopes: what the last stage is, with convolutions and without."""

import pytest
import torch
from torch import nn

from worker.sanitizer.architectures import build
from worker.sanitizer.network import from_module
from worker.sanitizer.recipes.prune import prune
from worker.sanitizer.recipes.scope import in_scope, last_stage
from worker.sanitizer.spec import ArchitectureSpec, FixedFraction, InputSpec, SanitizeSpec, parse_spec

INPUT = InputSpec(height=32, width=32, mean=(0.5,), std=(0.25,))


def network(module):
    return from_module(module, INPUT)


def names(sites):
    return [site.name for site in sites]


def test_in_a_residual_network_it_is_every_convolution_of_the_last_resolution_shortcuts_included():
    made = network(build(ArchitectureSpec(name="small_resnet", num_classes=4, in_channels=1, options={"width": 4})))
    sizes = {}
    with torch.no_grad():
        made.observe(
            torch.zeros(1, 1, 32, 32),
            {site.tap: lambda a, n=site.name: sizes.update({n: a.shape[2:]}) for site in made.sites},
        )
    last = sizes[made.last_conv().name]
    expected = [site.name for site in made.sites if site.kind == "conv" and sizes[site.name] == last]
    assert names(last_stage(made)) == expected
    assert 1 < len(expected) < len(made.sites)


def test_pruning_stays_in_the_last_stage(suspect):
    spec = SanitizeSpec(recipe="prune", inputs="clean", scope="last_stage", selection=FixedFraction(fraction=0.2))
    made = suspect(spec=spec)
    stage = names(last_stage(made.bench.network))
    assert made.bench.network.last_conv().name in stage
    outcome = prune(made.bench)
    assert list(outcome.mask) == list(outcome.scores) == stage
    assert len(stage) < len(made.bench.network.sites)


class Gated(nn.Module):
    """A convolution, squeeze and excitation on it, and a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.conv(self.stem(x).relu()).relu()
        gate = self.excite(self.squeeze(x.mean(dim=(2, 3), keepdim=True)).relu()).sigmoid()
        return self.head((x * gate).mean(dim=(2, 3)))


def test_what_makes_a_gate_is_no_part_of_it():
    assert names(last_stage(network(Gated()))) == ["conv"]


class Tokens(nn.Module):
    """Patches, two perceptrons on 16 tokens, their number quartered, and two on 4."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 6, 8, stride=8)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6)) for _ in range(4)
        )
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        for index, block in enumerate(self.blocks):
            if index == 2:
                x = x.unflatten(1, (4, 4)).mean(dim=1)
            x = x + block(x)
        return self.head(x.mean(dim=1))


def test_without_convolutions_but_patch_embeddings_it_is_the_layers_on_as_many_tokens_as_the_deepest():
    made = network(Tokens())
    assert {"patches", "blocks.0.1", "blocks.3.1"} <= set(names(made.sites))
    assert names(last_stage(made)) == ["blocks.2.1", "blocks.3.1"]


class Attention(nn.Module):
    """Two heads on the patches, and a hidden layer of a perceptron on the same."""

    def __init__(self):
        super().__init__()
        self.patches, self.head = nn.Conv2d(1, 8, 8, stride=8), nn.Linear(8, 4)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.hidden = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).reshape(-1, 16, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).reshape(-1, 16, 8))
        return self.head((x + self.hidden(x)).mean(dim=1))


def test_heads_count_by_their_tokens():
    stage = last_stage(network(Attention()))
    assert [(site.name, site.kind) for site in stage] == [("qkv", "head"), ("hidden.0", "linear")]


def test_in_a_multilayer_perceptron_it_is_every_hidden_layer():
    hidden = nn.Sequential(nn.Linear(1024, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    made = network(nn.Sequential(nn.Flatten(), *hidden))
    assert names(in_scope(made, "last_stage")) == ["1", "3"]


def test_a_scope_that_is_none_is_refused():
    assert parse_spec({"scope": "last_stage"}).scope == "last_stage"
    with pytest.raises(ValueError, match="last_stage"):
        parse_spec({"scope": "first_stage"})
