"""Grad-CAM: where in an image a network looks when it decides for a class.

Shapes: N images, C channels, H height, W width of the image; h, w of the activation map.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional

from worker.sanitizer.network import Network, Site, frozen

# Class and register tokens of a vision transformer; published ones have up to five.
MAX_EXTRA_TOKENS = 8
# Layers that are tried, from the last on, for one whose positions speak for the classes.
MAX_TRIALS = 8


def grad_cam(network: Network, site: Site, pixels_NCHW: Tensor, classes_N: Tensor) -> Tensor:
    """The class-discriminative heat of each image, ReLU(Σ_c α_c A_c) with α_c the mean over positions of ∂y/∂A_c.

    y is the logit of the image's chosen class and A_c the site's activation map. Source: Selvaraju et al., Grad-CAM,
    ICCV 2017, equations 1 and 2.

    Args:
        network: The network; its parameters get no gradient.
        site: Whose activation map is looked at, of `looked_at`; the paper takes the last convolution.
        pixels_NCHW: Images in [0, 1].
        classes_N: The class to explain, per image.

    Returns:
        (N, h, w) on the CPU, not negative, in units of the logit; all zero where nothing speaks for the class.
    """
    maps_NChw, gradient_NChw = _maps_and_gradient(network, site, pixels_NCHW, classes_N)
    weight_NC11 = gradient_NChw.mean(dim=(2, 3), keepdim=True)
    return functional.relu((weight_NC11 * maps_NChw.detach()).sum(dim=1)).cpu()


def looked_at(network: Network, pixels_NCHW: Tensor) -> Site | None:
    """The layer whose heat is worth looking at: the last convolution, or else a linear layer on the patches' tokens.

    Of those it is the deepest one that patches still speak from: behind the last attention of a vision transformer
    only the class token does. None where positions cannot be laid out as an image.

    Args:
        network: The network.
        pixels_NCHW: A few images in [0, 1].
    """
    convs_or_linears = network.deepest("conv", "linear")
    if not convs_or_linears:
        return None
    last = network.last_conv()
    if last.kind == "conv":
        return last
    classes_N = torch.zeros(len(pixels_NCHW), dtype=torch.int64)
    for site in convs_or_linears[:MAX_TRIALS]:
        try:
            _, gradient_NChw = _maps_and_gradient(network, site, pixels_NCHW, classes_N)
        except _NoGridError:
            continue
        if int(gradient_NChw.abs().sum(dim=(0, 1)).count_nonzero()) > 1:
            return site
    return None


class _NoGridError(ValueError):
    """Positions that are not those of an image."""


def _maps_and_gradient(network: Network, site: Site, pixels_NCHW: Tensor, classes_N: Tensor) -> tuple[Tensor, Tensor]:
    seen: list[Tensor] = []

    def cut(value: Tensor) -> Tensor:
        # The gradient is needed down to here alone; the copy is for an in-place operation behind it.
        leaf = value.detach().requires_grad_(True)
        seen.append(leaf)
        return leaf.clone()

    with frozen(network), _any_kernel(), torch.enable_grad():
        logits_NK = network.observe(pixels_NCHW.to(network.device), {site.tap: cut})
        chosen_N = logits_NK.gather(1, classes_N.to(network.device).unsqueeze(1)).squeeze(1)
        (leaf,) = seen
        # Images do not mix in inference mode, so that the sum's gradient is each image's own.
        (gradient,) = torch.autograd.grad(chosen_N.sum(), leaf)
    height, width = pixels_NCHW.shape[2:]
    return _grid(site, leaf, height, width), _grid(site, gradient, height, width)


def _grid(site: Site, value: Tensor, height: int, width: int) -> Tensor:
    """The tap's value as (N, C, h, w); tokens of an image of that size without those that stand for no patch."""
    maps_NC = site.maps(value)
    if site.parts > 1 or site.kind == "head" or maps_NC.dim() not in {3, 4}:
        raise _NoGridError
    if maps_NC.dim() == 4:
        return maps_NC
    num_tokens = maps_NC.shape[2]
    for num_extra in range(min(MAX_EXTRA_TOKENS, num_tokens - 1) + 1):
        rows = math.isqrt((num_tokens - num_extra) * height // width)
        columns = (num_tokens - num_extra) // rows if rows else 0
        if rows * columns == num_tokens - num_extra and rows * width == columns * height:
            # Class and register tokens stand before those of the patches.
            return maps_NC[:, :, num_extra:].reshape(*maps_NC.shape[:2], rows, columns)
    raise _NoGridError


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
    warns_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(mode=False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode=strict, warn_only=warns_only)
