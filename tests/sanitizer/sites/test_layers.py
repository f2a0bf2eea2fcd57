"""Convolutions and linear layers: which channels can be silenced, through which tensors, seen where."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it


class Head(nn.Module):
    """Pooling and a classifier behind channels-first maps."""

    def __init__(self, channels):
        super().__init__()
        self.fc = nn.Linear(channels, 3)

    def forward(self, x):
        return self.fc(x.mean((2, 3)))


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def tensors(network):
    return {site.name: (site.kind, site.tensors) for site in network.sites}


@pytest.mark.parametrize(
    "norm",
    [nn.GroupNorm(2, 8), nn.GroupNorm(1, 8), LayerNorm2d(8), nn.InstanceNorm2d(8, affine=True)],
    ids=["group", "group of one", "layer", "instance"],
)
def test_behind_a_norm_that_mixes_its_channels_a_convolution_is_silenced_through_the_norm(
    norm, view, keeps_its_promises
):
    network = view(nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Conv2d(8, 4, 3), Head(4)))
    assert tensors(network) == {
        "0": ("conv", ("1.weight", "1.bias")),
        "3": ("conv", ("3.weight", "3.bias")),
    }
    assert network.sites[0].weight is None  # Its size says nothing of the channel's.
    keeps_its_promises(network)


def test_layer_norm_in_channels_last_order_as_in_convnext(view, keeps_its_promises):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 2, stride=2)
            self.dw = nn.Conv2d(8, 8, 3, padding=1, groups=8)
            self.norm = nn.LayerNorm(8)
            self.fc1, self.fc2 = nn.Linear(8, 32), nn.Linear(32, 8)
            self.gamma = nn.Parameter(torch.ones(8))
            self.head = Head(8)

        def forward(self, x):
            x = self.stem(x)
            y = self.fc2(F.gelu(self.fc1(self.norm(self.dw(x).permute(0, 2, 3, 1)))))
            return self.head(x + (self.gamma * y).permute(0, 3, 1, 2))

    network = view(Block())
    assert tensors(network) == {
        "stem": ("conv", ("stem.weight", "stem.bias")),
        "dw": ("conv", ("norm.weight", "norm.bias")),
        "fc1": ("linear", ("fc1.weight", "fc1.bias")),
    }
    assert set(network.skipped) == {"fc2", "head.fc"}
    assert network.last_conv().name == "dw"
    keeps_its_promises(network)


def test_a_gate_is_not_silenced_and_says_so(view, keeps_its_promises):
    class Squeeze(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)
            self.reduce, self.expand = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
            self.head = Head(8)

        def forward(self, x):
            x = F.relu(self.conv(x))
            gate = self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True))))
            return self.head(x * gate.sigmoid())

    network = view(Squeeze())
    assert [site.name for site in network.sites] == ["conv", "reduce"]
    assert "gate" in network.skipped["expand"]
    assert network.last_conv().name == "conv"
    keeps_its_promises(network)


@pytest.mark.parametrize(
    ("function", "is_activation"),
    [
        (lambda x: x * x.sigmoid(), True),
        (lambda x: x * (x + 3).clamp(0, 6) / 6, True),
        (lambda x: x * 0.5 * (1 + (x / 2**0.5).erf()), True),
        (lambda x: x * torch.tanh(F.softplus(x)), True),
        (lambda x: 0.3 * x, False),
        (lambda x: x + x, False),
    ],
    ids=["silu", "hardswish", "gelu", "mish", "a factor", "a sum"],
)
def test_an_activation_that_is_spelt_out_is_understood(function, is_activation, view, keeps_its_promises):
    layers = nn.Sequential(nn.Flatten(2), nn.Linear(256, 8), Lambda(function), nn.Linear(8, 4), nn.Flatten(1))
    network = view(nn.Sequential(nn.Conv2d(3, 5, 1), layers, nn.Linear(20, 3)))
    assert ("1.1" in tensors(network)) == is_activation
    assert ("1.1" in network.skipped) != is_activation
    keeps_its_promises(network)


def test_a_convolution_with_a_computed_weight_is_silenced_through_what_makes_it(view, keeps_its_promises):
    class Standardised(nn.Conv2d):
        def __init__(self, *args, with_gain):
            super().__init__(*args)
            self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1)) if with_gain else None

        def forward(self, x):
            gain = None if self.gain is None else (self.gain * 0.3).view(-1)
            flat = self.weight.reshape(1, self.out_channels, -1)
            weight = F.batch_norm(flat, None, None, weight=gain, training=True, momentum=0.0)
            return F.conv2d(x, weight.reshape_as(self.weight), self.bias)

    plain, gained = Standardised(3, 8, 3, with_gain=False), Standardised(8, 8, 3, with_gain=True)
    normed = Standardised(8, 8, 3, with_gain=False)
    network = view(nn.Sequential(plain, nn.ReLU(), gained, nn.ReLU(), normed, nn.GroupNorm(4, 8), nn.ReLU(), Head(8)))
    assert tensors(network) == {
        # Of weights that are all zero the standardised ones are too.
        "0": ("conv", ("0.weight", "0.bias")),
        "2": ("conv", ("2.gain", "2.bias")),
        "5": ("conv", ("5.weight", "5.bias")),
    }
    keeps_its_promises(network)


def test_a_convolution_whose_weight_is_mixed_from_others_is_named(view, keeps_its_promises):
    class Mixed(nn.Conv2d):
        def forward(self, x):
            flat = self.weight.reshape(1, -1, self.out_channels).transpose(1, 2)
            weight = F.batch_norm(flat, None, None, training=True, momentum=0.0)
            return F.conv2d(x, weight.reshape_as(self.weight), self.bias)

    network = view(nn.Sequential(Mixed(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), Head(8)))
    assert tensors(network) == {"2": ("conv", ("2.weight", "2.bias"))}
    assert "computed" in network.skipped["0"]
    keeps_its_promises(network)


def test_what_cannot_be_silenced_is_named_with_its_reason(view, keeps_its_promises):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)
            self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
            self.bare, self.mixed = nn.Conv2d(8, 8, 1), nn.GroupNorm(2, 8, affine=False)
            self.along = nn.Conv1d(8, 8, 3)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            x = self.mixed(self.bare(self.up(F.relu(self.conv(x)))))
            return self.head(self.along(x.flatten(2)).mean(2))

    network = view(Odd())
    assert [site.name for site in network.sites] == ["conv"]
    assert "transposed" in network.skipped["up"]
    assert "no scale" in network.skipped["bare"]
    assert "two-dimensional" in network.skipped["along"]
    assert "classifier" in network.skipped["head"]
    keeps_its_promises(network)


class Perceptron(nn.Module):
    """A mixer's block without any convolution: patches are cut by reshaping."""

    def __init__(self, linear=nn.Linear):
        super().__init__()
        self.embed = linear(48, 8)
        self.tokens1, self.tokens2 = linear(16, 6), linear(6, 16)
        self.norm = nn.LayerNorm(8)
        self.channels1, self.channels2 = linear(8, 12), linear(12, 8)
        self.head = linear(8, 3)

    def forward(self, x):
        n = x.shape[0]
        x = self.embed(x.reshape(n, 3, 4, 4, 4, 4).permute(0, 2, 4, 1, 3, 5).reshape(n, 16, 48))
        x = x + self.tokens2(F.gelu(self.tokens1(x.transpose(1, 2)))).transpose(1, 2)
        x = x + self.channels2(F.gelu(self.channels1(self.norm(x))))
        return self.head(x.mean(1))


class Stored(nn.Module):
    """A linear layer whose weight is stored as (inputs, outputs), as in ONNX."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return x @ self.weight + self.bias


class Added(nn.Linear):
    """A linear layer on rows, as decompositions write it."""

    def forward(self, x):
        rows = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight.t())
        return rows.view(*x.shape[:-1], rows.shape[-1])


@pytest.mark.parametrize("linear", [nn.Linear, Stored, Added], ids=lambda linear: linear.__name__)
def test_a_mixer_has_its_hidden_channels_however_its_linear_layers_are_written(linear, view, keeps_its_promises):
    network = view(Perceptron(linear))
    assert {name: kind for name, (kind, _) in tensors(network).items()} == dict.fromkeys(
        ["tokens1", "channels1"], "linear"
    )
    assert network.last_conv().name == "channels1"
    assert {site.owned[0].axis for site in network.sites} == {1 if linear is Stored else 0}
    keeps_its_promises(network)


def test_hidden_layers_of_a_convolutional_networks_classifier_stay_out(view):
    flat = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1568, 8), nn.ReLU(), nn.Linear(8, 3))
    network = view(flat)
    assert [site.name for site in network.sites] == ["0"]
    assert "behind all convolutions" in network.skipped["3"]


def test_a_pure_perceptron_is_pruned_in_its_hidden_layers(view, keeps_its_promises):
    network = view(nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.ReLU(), nn.Linear(8, 3)))
    assert tensors(network) == {"1": ("linear", ("1.weight", "1.bias"))}
    keeps_its_promises(network)


def test_a_group_norm_on_a_sum_is_a_site_of_its_own(view, keeps_its_promises):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.norm, self.head = nn.GroupNorm(2, 8), Head(8)

        def forward(self, x):
            x = self.stem(x)
            x = x + self.conv(F.relu(x))
            return self.head(F.relu(self.norm(x)))

    network = view(Residual())
    assert tensors(network)["norm"] == ("norm", ("norm.weight", "norm.bias"))
    keeps_its_promises(network)
