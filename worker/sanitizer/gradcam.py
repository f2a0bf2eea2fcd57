"""Grad-CAM: where in an image a network looks when it decides for a class.

Shapes: N images, C channels, H height, W width of the image; h, w of the activation map.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional

from worker.sanitizer.network import Network, Site, frozen


def grad_cam(network: Network, site: Site, pixels_NCHW: Tensor, classes_N: Tensor) -> Tensor:
    """The class-discriminative heat of each image, ReLU(Σ_c α_c A_c) with α_c the mean over positions of ∂y/∂A_c.

    y is the logit of the image's chosen class and A_c the site's activation map. Source: Selvaraju et al., Grad-CAM,
    ICCV 2017, equations 1 and 2.

    Args:
        network: The network; its parameters get no gradient.
        site: Whose activation map is looked at; the paper takes the last convolution.
        pixels_NCHW: Images in [0, 1].
        classes_N: The class to explain, per image.

    Returns:
        (N, h, w) on the CPU, not negative, in units of the logit; all zero where nothing speaks for the class.
    """
    seen: list[Tensor] = []

    def cut(maps_NChw: Tensor) -> Tensor:
        # The gradient is needed down to here alone; the copy is for an in-place operation behind it.
        leaf_NChw = maps_NChw.detach().requires_grad_(True)
        seen.append(leaf_NChw)
        return leaf_NChw.clone()

    with frozen(network), _any_kernel(), torch.enable_grad():
        logits_NK = network.observe(pixels_NCHW.to(network.device), {site.tap: cut})
        chosen_N = logits_NK.gather(1, classes_N.to(network.device).unsqueeze(1)).squeeze(1)
        (maps_NChw,) = seen
        # Images do not mix in inference mode, so that the sum's gradient is each image's own.
        (gradient_NChw,) = torch.autograd.grad(chosen_N.sum(), maps_NChw)
    weight_NC11 = gradient_NChw.mean(dim=(2, 3), keepdim=True)
    return functional.relu((weight_NC11 * maps_NChw.detach()).sum(dim=1)).cpu()


def to_image_size(heat_Nhw: Tensor, height: int, width: int) -> Tensor:
    """Each image's heat over its own maximum, in [0, 1], stretched to (N, H, W) bilinearly; no heat stays zero."""
    largest_N11 = heat_Nhw.flatten(1).amax(dim=1).view(-1, 1, 1)
    share_Nhw = torch.where(largest_N11 > 0, heat_Nhw / largest_N11.clamp_min(torch.finfo(heat_Nhw.dtype).tiny), 0.0)
    stretched_N1HW = functional.interpolate(
        share_Nhw.unsqueeze(1), size=(height, width), mode="bilinear", align_corners=False
    )
    return stretched_N1HW.squeeze(1)


@contextmanager
def _any_kernel() -> Iterator[None]:
    """Allow kernels that are not deterministic: on CUDA some poolings have no other gradient.

    The last bits of a heat map decide nothing, and a job must not fail over a picture.
    """
    strict = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(mode=False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode=strict)
