"""Attention heads: every way of cutting them is understood, and a silenced head answers zero."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from worker.sanitizer.activations import NORMS, profile
from worker.sanitizer.network import frozen
from worker.sanitizer.recipes import soft_masks

WIDTH, HEADS, TOKENS = 12, 3, 16
SIZE = WIDTH // HEADS


class Transformer(nn.Module):
    """Patches, one attention in the way of a subclass, one hidden layer, the mean of the tokens."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 20), nn.Linear(20, WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.proj(self.attend(self.norm1(x)))
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return self.head(x.mean(1))


class Fused(Transformer):
    """One layer makes queries, keys and values, each for all heads: timm's way."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def attend(self, x):
        q, k, v = self.qkv(x).reshape(-1, TOKENS, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, TOKENS, WIDTH)


class HeadFirst(Fused):
    """One layer makes head after head, each with its queries, keys and values: a way of MaxViT."""

    def attend(self, x):
        q, k, v = self.qkv(x).view(-1, TOKENS, HEADS, 3 * SIZE).transpose(1, 2).chunk(3, dim=3)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, TOKENS, WIDTH)


class SpeltOut(Fused):
    """Products and a softmax: torchvision's Swin and ONNX files."""

    def attend(self, x):
        q, k, v = self.qkv(x).reshape(-1, TOKENS, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4).unbind(0)
        weights = F.dropout((q @ k.transpose(-2, -1) / math.sqrt(SIZE)).softmax(-1), 0.1, training=False)
        return (weights @ v).transpose(1, 2).reshape(-1, TOKENS, WIDTH)


class Apart(Transformer):
    """Three layers: the way of the transformers library."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def attend(self, x):
        q, k, v = (layer(x).view(-1, TOKENS, HEADS, SIZE).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, TOKENS, WIDTH)


class BiasInParts(Fused):
    """Keys have no bias of their own: BEiT's and Swin V2's way."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(WIDTH)), nn.Parameter(torch.zeros(WIDTH))
        self.register_buffer("k_bias", torch.zeros(WIDTH))

    def attend(self, x):
        made = F.linear(x, self.qkv.weight, torch.cat((self.q_bias, self.k_bias, self.v_bias)))
        q, k, v = made.reshape(-1, TOKENS, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, TOKENS, WIDTH)


class Torchs(Transformer):
    """The module of torch itself, as in torchvision's ViT; it puts tokens before images on the way."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def attend(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class Convolutional(Transformer):
    """A convolution of one pixel makes queries, keys and values: CoAtNet's way."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Conv2d(WIDTH, 3 * WIDTH, 1)

    def attend(self, x):
        made = self.qkv(x.transpose(1, 2).reshape(-1, WIDTH, 4, 4)).view(-1, HEADS, 3 * SIZE, TOKENS)
        q, k, v = (part.transpose(2, 3) for part in made.chunk(3, dim=2))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, TOKENS, WIDTH)


class Windowed(Fused):
    """Attention within four windows of four tokens: Swin's way."""

    def attend(self, x):
        x = x.view(-1, 2, 2, 2, 2, WIDTH).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, WIDTH)
        q, k, v = self.qkv(x).reshape(-1, 4, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 2, 2, 2, 2, WIDTH)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, TOKENS, WIDTH)


# What head 1 owns: (tensor, its first row, how many).
WAYS = {
    Fused: ("qkv", [("qkv.weight", 2 * WIDTH + SIZE), ("qkv.bias", 2 * WIDTH + SIZE)]),
    HeadFirst: ("qkv", [("qkv.weight", 5 * SIZE), ("qkv.bias", 5 * SIZE)]),
    SpeltOut: ("qkv", [("qkv.weight", 2 * WIDTH + SIZE), ("qkv.bias", 2 * WIDTH + SIZE)]),
    Apart: ("v", [("v.weight", SIZE), ("v.bias", SIZE)]),
    BiasInParts: ("qkv", [("qkv.weight", 2 * WIDTH + SIZE), ("v_bias", SIZE)]),
    Torchs: (
        "attention.in_proj",
        [("attention.in_proj_weight", 2 * WIDTH + SIZE), ("attention.in_proj_bias", 2 * WIDTH + SIZE)],
    ),
    Convolutional: ("qkv", [("qkv.weight", 5 * SIZE), ("qkv.bias", 5 * SIZE)]),
    Windowed: ("qkv", [("qkv.weight", 2 * WIDTH + SIZE), ("qkv.bias", 2 * WIDTH + SIZE)]),
}


@pytest.fixture(scope="module")
def networks(view):
    torch.manual_seed(0)
    return {way: view(way()) for way in WAYS}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_head_owns_the_rows_of_its_values_however_they_are_cut(way, networks, keeps_its_promises):
    network = networks[way]
    name, expected = WAYS[way]
    assert [(site.name, site.kind) for site in network.sites] == [
        ("patches", "conv"),
        (name, "head"),
        ("fc1", "linear"),
    ]
    site = network.site(name)
    assert site.num_channels == HEADS
    one = torch.tensor([1])
    owned = [(rows.tensor, rows.index(one)[rows.axis].tolist()) for rows in site.owned]
    assert owned == [(tensor, list(range(start, start + SIZE))) for tensor, start in expected]
    assert name not in network.skipped
    keeps_its_promises(network)


def test_windows_of_an_image_are_positions_of_its_map(networks):
    network = networks[Windowed]
    pixels = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    together = profile(network, [pixels], network.sites)
    alone = profile(network, pixels.split(1), network.sites)
    for name, state in together.items():
        assert state.num_images == alone[name].num_images == 6
        for norm in NORMS:
            torch.testing.assert_close(state.mean(norm), alone[name].mean(norm), rtol=1e-5, atol=1e-7)
            torch.testing.assert_close(state.largest[norm], alone[name].largest[norm], rtol=1e-5, atol=1e-7)


def test_the_norms_of_a_head_run_over_its_tokens_and_widths(networks):
    network, seen = networks[Fused], []
    pixels = torch.rand(3, 3, 16, 16)
    site = network.site("qkv")
    with torch.no_grad():
        network.observe(pixels, {site.tap: lambda value: seen.append(value.clone())})
    assert seen[0].shape == (3, HEADS, TOKENS, SIZE)
    found = profile(network, [pixels], [site])["qkv"]
    torch.testing.assert_close(found.mean("linf"), seen[0].abs().amax((2, 3)).double().mean(0))
    torch.testing.assert_close(found.mean("l1"), seen[0].abs().double().sum((2, 3)).mean(0))


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_soft_mask_of_zeros_and_ones_runs_as_the_hard_one(way, networks):
    network, pixels = networks[way], torch.rand(2, 3, 16, 16)
    site = network.site(WAYS[way][0])
    mask = soft_masks.ones(network, [site])
    with torch.no_grad(), frozen(network):
        torch.testing.assert_close(network(pixels, soft_masks.masked(network, [site], mask)), network(pixels))
        mask[site.name][1] = 0
        tensors = soft_masks.masked(network, [site], mask)
        for rows in site.owned:
            expected = network.tensors[rows.tensor].clone()
            expected[rows.index(torch.tensor([1]))] = 0
            assert torch.equal(tensors[rows.tensor], expected)


def test_values_that_a_norm_makes_are_named_and_left_alone(view):
    class Normed(Fused):
        def __init__(self):
            super().__init__()
            self.value_norm = nn.LayerNorm(SIZE)

        def attend(self, x):
            q, k, v = self.qkv(x).reshape(-1, TOKENS, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4).unbind(0)
            made = F.scaled_dot_product_attention(q, k, self.value_norm(v))
            return made.transpose(1, 2).reshape(-1, TOKENS, WIDTH)

    network = view(Normed())
    assert [site.kind for site in network.sites] == ["conv", "linear"]
    assert any("values of its heads" in reason for reason in network.skipped.values())


def test_the_last_convolution_of_a_transformer_is_its_last_hidden_layer(networks):
    assert networks[Fused].last_conv().name == "fc1"


@pytest.mark.parametrize("activated", [0, 1])
def test_a_gated_linear_unit_owns_the_rows_of_the_half_that_is_activated(activated, view, keeps_its_promises):
    class Gated(Fused):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(WIDTH, 40), nn.Linear(20, WIDTH)

        def forward(self, x):
            x = self.patches(x).flatten(2).transpose(1, 2)
            halves = self.fc1(self.norm2(x)).chunk(2, dim=-1)
            return self.head((x + self.fc2(F.silu(halves[activated]) * halves[1 - activated])).mean(1))

    network = view(Gated())
    site = network.site("fc1")
    assert (site.num_channels, site.owned[0].start, site.owned[0].block) == (20, 20 * activated, 1)
    keeps_its_promises(network)
