"""Grad-CAM against a network small enough to differentiate by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from worker.sanitizer.gradcam import grad_cam, looked_at, to_image_size
from worker.sanitizer.network import from_module
from worker.sanitizer.spec import InputSpec

INPUT = InputSpec(height=4, width=4, mean=(0.0,), std=(1.0,))


def tiny(inplace):
    """Two channels, x and 1 - x, each pooled to its mean; logit 0 is 3a - b, logit 1 is -2a."""
    module = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.ReLU(inplace=inplace), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)
    )
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
        module[0].bias.copy_(torch.tensor([0.0, 1.0]))
        module[4].weight.copy_(torch.tensor([[3.0, -1.0], [-2.0, 0.0]]))
        module[4].bias.zero_()
    return from_module(module, INPUT)


@pytest.mark.parametrize("inplace", [False, True])
def test_the_heat_is_that_of_the_formula(inplace):
    network = tiny(inplace)
    pixels = torch.rand(3, 1, 4, 4)
    heat = grad_cam(network, network.last_conv(), pixels, torch.tensor([0, 1, 0]))
    # The mean over 16 positions has the derivative 1/16 at each, so that alpha is the classifier's weight over 16.
    x = pixels[:, 0]
    torch.testing.assert_close(heat[0], ((3 * x[0] - (1 - x[0])) / 16).clamp_min(0))
    torch.testing.assert_close(heat[1], torch.zeros(4, 4))  # nothing speaks for class 1
    torch.testing.assert_close(heat[2], ((3 * x[2] - (1 - x[2])) / 16).clamp_min(0))


def test_it_does_not_matter_who_else_is_in_the_batch():
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(20, 3)
    )
    network = from_module(module, INPUT)
    pixels, classes = torch.rand(6, 1, 4, 4), torch.tensor([0, 1, 2, 2, 1, 0])
    together = grad_cam(network, network.sites[0], pixels, classes)
    alone = [grad_cam(network, network.sites[0], pixels[i : i + 1], classes[i : i + 1]) for i in range(6)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_the_network_is_as_before():
    network = tiny(inplace=True)
    with torch.no_grad():
        grad_cam(network, network.last_conv(), torch.rand(2, 1, 4, 4), torch.tensor([0, 1]))
    assert all(tensor.grad is None for tensor in network.parameters().values())
    assert all(tensor.requires_grad for tensor in network.parameters().values())


def test_heat_is_stretched_over_the_image_and_each_image_has_its_own_scale():
    heat = torch.tensor([[[0.0, 2.0], [4.0, 8.0]], [[0.0, 0.0], [0.0, 0.0]]])
    stretched = to_image_size(heat, 6, 8)
    assert stretched.shape == (2, 6, 8)
    assert stretched[0].max() == 1
    torch.testing.assert_close(stretched[0, 0, -1], torch.tensor(0.25))  # a corner is its cell's own value
    assert not stretched[1].any()


class Tokens(nn.Module):
    """Two blocks of attention and a hidden layer on four patches; a class token in front speaks, or the mean."""

    def __init__(self, with_class_token):
        super().__init__()
        self.patches, self.head = nn.Conv2d(1, 4, 2, stride=2), nn.Linear(4, 3)
        self.token = nn.Parameter(torch.randn(1, 1, 4)) if with_class_token else None
        self.qkv = nn.ModuleList(nn.Linear(4, 12) for _ in range(2))
        self.fc1, self.fc2 = (nn.ModuleList(nn.Linear(4, 4) for _ in range(2)) for _ in range(2))

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x if self.token is None else torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        for qkv, fc1, fc2 in zip(self.qkv, self.fc1, self.fc2, strict=True):
            q, k, v = qkv(x).unflatten(2, (3, 2, 2)).permute(2, 0, 3, 1, 4).unbind(0)
            x = x + functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = x + fc2(functional.gelu(fc1(x)))
        return self.head(x.mean(1) if self.token is None else x[:, 0])


@pytest.mark.parametrize(("with_class_token", "layer"), [(False, "fc1.1"), (True, "fc1.0")])
def test_a_transformer_is_looked_at_where_its_patches_still_speak(with_class_token, layer):
    torch.manual_seed(0)
    network = from_module(Tokens(with_class_token), INPUT)
    pixels = torch.rand(3, 1, 4, 4)
    site = looked_at(network, pixels)
    assert site.name == layer
    heat = grad_cam(network, site, pixels, torch.tensor([0, 1, 2]))
    assert heat.shape == (3, 2, 2)
    assert heat.any()


def test_tokens_are_laid_out_row_by_row_without_the_class_token():
    torch.manual_seed(0)
    network = from_module(Tokens(with_class_token=True), INPUT)
    site, pixels, seen = network.site("fc1.0"), torch.rand(2, 1, 4, 4), []
    heat = grad_cam(network, site, pixels, torch.tensor([0, 0]))

    def keep(value):
        seen.append(value.detach().requires_grad_(True))
        return seen[0].clone()

    (gradient,) = torch.autograd.grad(network.observe(pixels, {site.tap: keep})[:, 0].sum(), seen)
    weight = gradient[:, 1:].mean(1, keepdim=True)
    expected = (weight * seen[0][:, 1:]).sum(2).clamp_min(0).view(2, 2, 2)
    torch.testing.assert_close(heat, expected.detach())


def test_a_convolutional_network_is_looked_at_in_its_last_convolution_and_a_perceptron_nowhere():
    network = tiny(inplace=False)
    assert looked_at(network, torch.rand(1, 1, 4, 4)) == network.last_conv()
    flat = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3))
    assert looked_at(from_module(flat, INPUT), torch.rand(1, 1, 4, 4)) is None
