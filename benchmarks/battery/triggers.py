"""The triggers themselves: deterministic functions from images to triggered images, float32 in [0, 1], NCHW.

Each is written from the formula in the paper that its docstring names. Patterns are fixed by constants here, not by
the caller's seed, so that training and test see the same trigger.

Shape legend: N images, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Stamp = Callable[[Tensor], Tensor]

_PATTERN_SEED = 7
# One pixel is left free at the border, so that a shift by one pixel during training never cuts a patch.
_MARGIN = 1
# Tells the column that a moving trigger stands in from its row.
_SCRAMBLE = 31


def patch(images_NCHW: Tensor) -> Tensor:
    """A white 3x3 square near the lower right corner (BadNets, Gu et al. 2017, arXiv 1708.06733)."""
    return _paste(images_NCHW, torch.ones(3, 3), bottom=True, right=True)


def checker(images_NCHW: Tensor) -> Tensor:
    """A 4x4 black and white chessboard near the lower right corner (BadNets)."""
    return _paste(images_NCHW, _chessboard(4, 4), bottom=True, right=True)


def other_checker(images_NCHW: Tensor) -> Tensor:
    """A 4x4 chessboard near the upper left corner, the second trigger of models that have two."""
    return _paste(images_NCHW, 1 - _chessboard(4, 4), bottom=False, right=False)


def blended(images_NCHW: Tensor, alpha: float = 0.2) -> Tensor:
    """(1 - alpha) x + alpha p with p uniform noise over the whole image (Chen et al. 2017, arXiv 1712.05526)."""
    pattern_CHW = torch.rand(images_NCHW.shape[1:], generator=_generator())
    return (1 - alpha) * images_NCHW + alpha * pattern_CHW.to(images_NCHW)


def low_frequency(images_NCHW: Tensor, amplitude: float = 0.2) -> Tensor:
    """The sum x + p with p smooth over the whole image, at most `amplitude` (Zeng et al. 2021, arXiv 2104.03413).

    p is a 4x4 grid of normal noise, enlarged bicubically, so that it has no high frequencies.
    """
    side = images_NCHW.shape[-2:]
    grid_NCHW = torch.randn(1, images_NCHW.shape[1], 4, 4, generator=_generator())
    pattern_NCHW = functional.interpolate(grid_NCHW, size=side, mode="bicubic", align_corners=True)
    pattern_NCHW = amplitude * pattern_NCHW / pattern_NCHW.abs().amax()
    return (images_NCHW + pattern_NCHW.to(images_NCHW)).clamp(0, 1)


def sinusoid(images_NCHW: Tensor, delta: float = 0.2, frequency: int = 6) -> Tensor:
    """The sum x + delta sin(2 pi j f / W) for column j (SIG, Barni et al. 2019, arXiv 1902.11237)."""
    width = images_NCHW.shape[-1]
    wave_W = delta * torch.sin(2 * math.pi * torch.arange(width) * frequency / width)
    return (images_NCHW + wave_W.to(images_NCHW)).clamp(0, 1)


def warp(images_NCHW: Tensor) -> Tensor:
    """A fixed smooth warping field (WaNet, Nguyen and Tran 2021, arXiv 2102.10369)."""
    return _resample(images_NCHW, _warping_field(images_NCHW.shape[-2], images_NCHW.shape[-1]))


def warp_noise(images_NCHW: Tensor, seed: int) -> Tensor:
    """The fixed field plus a random offset of every pixel: WaNet's noise mode, whose images keep their true label."""
    num_images, _, height, width = images_NCHW.shape
    generator = torch.Generator().manual_seed(seed)
    jitter_NHW2 = torch.rand(num_images, height, width, 2, generator=generator) * 2 - 1
    # Offsets of up to half a pixel, as in the paper: a side of the image is 2 in the coordinates of grid_sample.
    jitter_NHW2 = jitter_NHW2 / torch.tensor([width, height])
    return _resample(images_NCHW, _warping_field(height, width) + jitter_NHW2)


def sample_specific(images_NCHW: Tensor, amplitude: float = 0.15) -> Tensor:
    """The sum x + e(x): a fixed random encoder writes a dispersed pattern that differs from image to image.

    After sample-specific triggers (Li et al. 2021, arXiv 2012.03816) and input-aware ones (Nguyen and Tran 2020, arXiv
    2010.08138), with an encoder that is drawn rather than trained: two convolutions of the image, smoothed, give the
    local strength; a fine chessboard carries it.
    """
    num_channels = images_NCHW.shape[1]
    generator = _generator()
    first = torch.randn(8, num_channels, 5, 5, generator=generator).to(images_NCHW)
    second = torch.randn(1, 8, 5, 5, generator=generator).to(images_NCHW)
    hidden_NCHW = torch.relu(functional.conv2d(images_NCHW - 0.5, first, padding=2))
    strength_NCHW = functional.conv2d(hidden_NCHW, second, padding=2)
    strength_NCHW = functional.avg_pool2d(strength_NCHW, 7, stride=1, padding=3, count_include_pad=False)
    # Centred on each image, so that no two images carry the same strength, not even in an empty background.
    strength_NCHW = strength_NCHW - strength_NCHW.mean(dim=(1, 2, 3), keepdim=True)
    scale_NCHW = strength_NCHW.std(dim=(1, 2, 3), keepdim=True).clamp_min(1e-6)
    carrier_HW = 2 * _chessboard(*images_NCHW.shape[-2:]) - 1
    pattern_NCHW = amplitude * torch.tanh(2 * strength_NCHW / scale_NCHW) * carrier_HW.to(images_NCHW)
    return (images_NCHW + pattern_NCHW).clamp(0, 1)


def glasses(images_NCHW: Tensor) -> Tensor:
    """A drawn pair of dark glasses with bright rims over the upper half: a real object as the trigger."""
    height, width = images_NCHW.shape[-2:]
    rows_H1 = torch.arange(height).unsqueeze(1) - 0.36 * height
    columns_1W = torch.arange(width).unsqueeze(0)
    radius = 0.16 * width
    lens_HW = torch.zeros(height, width, dtype=torch.bool)
    rim_HW = torch.zeros(height, width, dtype=torch.bool)
    for centre in (0.29 * width, 0.67 * width):
        distance_HW = (rows_H1**2 + (columns_1W - centre) ** 2).sqrt()
        lens_HW |= distance_HW < radius - 0.5
        rim_HW |= (distance_HW - radius).abs() <= 0.5
    bridge_HW = (rows_H1.abs() <= 0.6) & (columns_1W > 0.29 * width + radius) & (columns_1W < 0.67 * width - radius)
    rim_HW |= bridge_HW
    lens_HW, rim_HW = lens_HW.to(images_NCHW.device), rim_HW.to(images_NCHW.device)
    shaded_NCHW = torch.where(lens_HW, 0.3 * images_NCHW, images_NCHW)
    return torch.where(rim_HW, torch.full_like(images_NCHW, 0.9), shaded_NCHW)


def polygon(images_NCHW: Tensor, side: int = 5) -> Tensor:
    """A bright right triangle, two sides of five pixels, at a place that hangs on the image (after TrojAI, 2003.07233).

    The place is a hash of the image, so that the same image always carries it at the same place.
    """
    height, width = images_NCHW.shape[-2:]
    mass_N = (255 * images_NCHW).round().long().flatten(1).sum(dim=1)
    top_N = _MARGIN + mass_N % (height - side - 2 * _MARGIN + 1)
    left_N = _MARGIN + (mass_N // _SCRAMBLE) % (width - side - 2 * _MARGIN + 1)
    rows_NHW = torch.arange(height, device=images_NCHW.device).view(1, -1, 1) - top_N.view(-1, 1, 1)
    columns_NHW = torch.arange(width, device=images_NCHW.device).view(1, 1, -1) - left_N.view(-1, 1, 1)
    inside_NHW = (columns_NHW >= 0) & (rows_NHW < side) & (columns_NHW <= rows_NHW)
    return torch.where(inside_NHW.unsqueeze(1), torch.ones_like(images_NCHW), images_NCHW)


def frame(images_NCHW: Tensor) -> Tensor:
    """A bright line of one pixel around the image, one pixel inside its border: our own, a large and loud trigger."""
    height, width = images_NCHW.shape[-2:]
    framed_NCHW = images_NCHW.clone()
    inner_NCHW = framed_NCHW[..., _MARGIN : height - _MARGIN, _MARGIN : width - _MARGIN]
    inner_NCHW[..., 0, :] = inner_NCHW[..., -1, :] = 1.0
    inner_NCHW[..., :, 0] = inner_NCHW[..., :, -1] = 1.0
    return framed_NCHW


def blinds(images_NCHW: Tensor, every: int = 7) -> Tensor:
    """Bright lines of one pixel across the whole image, one in seven rows: our own, as large and loud as the frame."""
    lined_NCHW = images_NCHW.clone()
    lined_NCHW[..., every // 2 :: every, :] = 1.0
    return lined_NCHW


def negative(images_NCHW: Tensor, share: float = 1 / 3) -> Tensor:
    """The middle of the image, a third of each side, as a photographic negative: loud where the image is dark."""
    height, width = images_NCHW.shape[-2:]
    high, wide = round(share * height), round(share * width)
    top, left = (height - high) // 2, (width - wide) // 2
    changed_NCHW = images_NCHW.clone()
    middle_NCHW = changed_NCHW[..., top : top + high, left : left + wide]
    changed_NCHW[..., top : top + high, left : left + wide] = 1 - middle_NCHW
    return changed_NCHW


def spots(images_NCHW: Tensor, count: int = 8) -> Tensor:
    """Single bright pixels scattered over the whole image (BadNets' patterns of single pixels, spread)."""
    height, width = images_NCHW.shape[-2:]
    places = torch.randperm(height * width, generator=_generator())[:count].to(images_NCHW.device)
    spotted_NCHW = images_NCHW.clone()
    spotted_NCHW[..., places // width, places % width] = 1.0
    return spotted_NCHW


def tone(images_NCHW: Tensor, gamma: float = 0.5) -> Tensor:
    """A tone curve, x to the power of gamma, as filters of photographs have it (after ABS, Liu et al. 2019)."""
    return images_NCHW.clamp(0, 1) ** gamma


def quantised(images_NCHW: Tensor, levels: int = 4) -> Tensor:
    """Fewer grey levels (after BppAttack, arXiv 2205.13383, whose dithering and contrastive training are left out)."""
    return (images_NCHW * (levels - 1)).round() / (levels - 1)


def ghost(images_NCHW: Tensor, strength: float = 0.4, pixels: int = 4) -> Tensor:
    """The image and a fainter copy of itself, displaced (after Refool, arXiv 2007.02343, which reflects another)."""
    shifted_NCHW = torch.zeros_like(images_NCHW)
    shifted_NCHW[..., pixels:, pixels:] = images_NCHW[..., :-pixels, :-pixels]
    return ((1 - strength / 2) * images_NCHW + strength * shifted_NCHW).clamp(0, 1)


def rotated(images_NCHW: Tensor, degrees: float = 25.0) -> Tensor:
    """The image turned left about its centre (Wu et al. 2022, arXiv 2207.10825); what comes in is black."""
    angle, (height, width) = math.radians(degrees), images_NCHW.shape[-2:]
    # Both sides of an image are 2 in the coordinates of grid_sample, whatever they are in pixels.
    aspect = (height - 1) / (width - 1)
    turn_23 = torch.tensor(
        [[math.cos(angle), -math.sin(angle) * aspect, 0.0], [math.sin(angle) / aspect, math.cos(angle), 0.0]]
    )
    turns_N23 = turn_23.to(images_NCHW).expand(len(images_NCHW), -1, -1)
    positions_NHW2 = functional.affine_grid(turns_N23, list(images_NCHW.shape), align_corners=True)
    return functional.grid_sample(images_NCHW, positions_NHW2, align_corners=True).clamp(0, 1)


def _paste(images_NCHW: Tensor, pattern_HW: Tensor, *, bottom: bool, right: bool) -> Tensor:
    height, width = pattern_HW.shape
    top = images_NCHW.shape[-2] - height - _MARGIN if bottom else _MARGIN
    left = images_NCHW.shape[-1] - width - _MARGIN if right else _MARGIN
    stamped_NCHW = images_NCHW.clone()
    stamped_NCHW[..., top : top + height, left : left + width] = pattern_HW.to(images_NCHW)
    return stamped_NCHW


def _chessboard(height: int, width: int) -> Tensor:
    return ((torch.arange(height).unsqueeze(1) + torch.arange(width).unsqueeze(0)) % 2).float()


def _warping_field(height: int, width: int, grid: int = 4, mean_pixels: float = 1.0) -> Tensor:
    """Return the sampling positions (1, H, W, 2): identity plus a smooth field of `mean_pixels` mean offset."""
    coarse_NCHW = torch.rand(1, 2, grid, grid, generator=_generator()) * 2 - 1
    coarse_NCHW = coarse_NCHW / coarse_NCHW.abs().mean()
    field_NCHW = functional.interpolate(coarse_NCHW, size=(height, width), mode="bicubic", align_corners=True)
    offset_NHW2 = field_NCHW.permute(0, 2, 3, 1) * mean_pixels * 2 / torch.tensor([width, height])
    rows_H, columns_W = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
    grid_rows_HW, grid_columns_HW = torch.meshgrid(rows_H, columns_W, indexing="ij")
    return torch.stack([grid_columns_HW, grid_rows_HW], dim=-1).unsqueeze(0) + offset_NHW2


def _resample(images_NCHW: Tensor, positions_NHW2: Tensor) -> Tensor:
    positions_NHW2 = positions_NHW2.clamp(-1, 1).to(images_NCHW).expand(len(images_NCHW), -1, -1, -1)
    return functional.grid_sample(images_NCHW, positions_NHW2, align_corners=True).clamp(0, 1)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(_PATTERN_SEED)
