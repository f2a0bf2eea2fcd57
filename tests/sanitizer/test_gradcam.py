"""Grad-CAM against a network small enough to differentiate by hand."""

import pytest
import torch
from torch import nn

from worker.sanitizer.gradcam import grad_cam, to_image_size
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
