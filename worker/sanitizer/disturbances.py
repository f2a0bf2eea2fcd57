"""Random triggers: what the literature plants, drawn anew for every image and leading nowhere.

A network that answers alike with and without them leans less on any one such trigger, whichever it is. Source of the
idea: Borgnia et al., "Strong Data Augmentation Sanitizes Poisoning and Backdoor Attacks Without an Accuracy Tradeoff",
ICASSP 2021. All parameters are drawn over wide ranges; none is that of a known attack.

Shapes: B images of a batch, C channels, H height, W width. Pixels are in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

# Of a blend: how much of the image is replaced, at most.
MAX_BLEND = 0.3
# Of an additive pattern: its largest value, at most.
MAX_AMPLITUDE = 0.25
# Of a patch: its sides in shares of the image's, at most.
MAX_PATCH = 0.25
# Of an object: the share of the image that it covers.
OBJECT_AREA = (0.05, 0.2)
LEAST_OPACITY = 0.2
# Of a warp: the mean offset of a pixel in shares of the image's sides, at most.
MAX_OFFSET = 0.07
# The grids that smooth patterns are enlarged from have so many cells to a side.
GRID = (2, 8)
SMALLEST_NORM = 1e-12


def disturb(pixels_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """The images, each under a random trigger of one family, all families alike often: (B, C, H, W) in [0, 1].

    Args:
        pixels_BCHW: Images in [0, 1], on any device.
        generator: CPU generator of all draws.
    """
    disturbed_BCHW = pixels_BCHW.clone()
    order_B = torch.randperm(len(pixels_BCHW), generator=generator)
    order_B = order_B.to(pixels_BCHW.device)
    families, parts = FAMILIES, order_B.chunk(len(FAMILIES))
    if len(parts) < len(families):
        # Equal parts of few images are fewer than the families: some families get an image less, each in turn.
        families = tuple(families[row] for row in torch.randperm(len(families), generator=generator))
        parts = order_B.tensor_split(len(families))
    for family, rows in zip(families, parts, strict=True):
        if len(rows):
            disturbed_BCHW[rows] = family(pixels_BCHW[rows], generator)
    return disturbed_BCHW.clamp(0, 1)


def blend(pixels_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """(1 - a) x + a p with p uniform or smooth noise, a <= `MAX_BLEND` (as Chen et al. 2017, arXiv 1712.05526)."""
    share_B111 = MAX_BLEND * _uniform(generator, len(pixels_BCHW), 1, 1, 1)
    noise_BCHW = _uniform(generator, *pixels_BCHW.shape)
    smooth_BCHW = (_smooth(pixels_BCHW.shape, generator) + 1) / 2
    is_smooth_B111 = _coin(len(pixels_BCHW), generator)
    pattern_BCHW = torch.where(is_smooth_B111, smooth_BCHW, noise_BCHW)
    share_B111, pattern_BCHW = share_B111.to(pixels_BCHW), pattern_BCHW.to(pixels_BCHW)
    return (1 - share_B111) * pixels_BCHW + share_B111 * pattern_BCHW


def add_noise(pixels_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """The sum x + p with p noise, fine or smooth, |p| <= `MAX_AMPLITUDE` (as Zeng et al. 2021, arXiv 2104.03413)."""
    amplitude_B111 = MAX_AMPLITUDE * _uniform(generator, len(pixels_BCHW), 1, 1, 1)
    fine_BCHW = _unit(torch.randn(pixels_BCHW.shape, generator=generator))
    is_smooth_B111 = _coin(len(pixels_BCHW), generator)
    pattern_BCHW = torch.where(is_smooth_B111, _smooth(pixels_BCHW.shape, generator), fine_BCHW)
    return pixels_BCHW + (amplitude_B111 * pattern_BCHW).to(pixels_BCHW)


def add_wave(pixels_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """The sum of x and a sine wave of any direction, frequency and phase (as Barni et al. 2019, arXiv 1902.11237)."""
    batch, _, height, width = pixels_BCHW.shape
    amplitude_B111 = MAX_AMPLITUDE * _uniform(generator, batch, 1, 1, 1)
    cycles_per_pixel_B111 = 0.5 * _uniform(generator, batch, 1, 1, 1)
    direction_B111 = 2 * math.pi * _uniform(generator, batch, 1, 1, 1)
    phase_B111 = 2 * math.pi * _uniform(generator, batch, 1, 1, 1)
    rows_H1, columns_W = torch.arange(height).unsqueeze(1), torch.arange(width)
    along_B1HW = torch.cos(direction_B111) * columns_W + torch.sin(direction_B111) * rows_H1
    wave_B1HW = torch.sin(2 * math.pi * cycles_per_pixel_B111 * along_B1HW + phase_B111)
    return pixels_BCHW + (amplitude_B111 * wave_B1HW).to(pixels_BCHW)


def paste(pixels_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Images with a rectangle of noise, one colour or a chessboard anywhere (as Gu et al. 2017, arXiv 1708.06733)."""
    batch, _, height, width = pixels_BCHW.shape

    def inside(size: int) -> Tensor:
        length_B1 = (1 + MAX_PATCH * size * _uniform(generator, batch, 1)).floor().clamp_max(size)
        first_B1 = (_uniform(generator, batch, 1) * (size - length_B1 + 1)).floor()
        offset_BS = torch.arange(size) - first_B1
        return (offset_BS >= 0) & (offset_BS < length_B1)

    where_BHW = inside(height).unsqueeze(2) & inside(width).unsqueeze(1)
    chessboard_HW = ((torch.arange(height).unsqueeze(1) + torch.arange(width)) % 2).float()
    kind_B111 = torch.randint(3, (batch, 1, 1, 1), generator=generator)
    content_BCHW = torch.where(
        kind_B111 == 0,
        _uniform(generator, *pixels_BCHW.shape),
        torch.where(kind_B111 == 1, _colour(pixels_BCHW.shape, generator), chessboard_HW),
    )
    return torch.where(where_BHW.unsqueeze(1).to(pixels_BCHW.device), content_BCHW.to(pixels_BCHW), pixels_BCHW)


def cover(pixels_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Images behind a more or less opaque object of one colour and a random shape (accessories of Chen et al. 2017)."""
    batch, _, height, width = pixels_BCHW.shape
    relief_BP = _smooth((batch, 1, height, width), generator).flatten(1)
    least, most = OBJECT_AREA
    area_B1 = least + (most - least) * _uniform(generator, batch, 1)
    rank_BP = relief_BP.argsort(dim=1, descending=True).argsort(dim=1)
    where_B1HW = (rank_BP < area_B1 * rank_BP.shape[1]).view(batch, 1, height, width)
    opacity_B111 = LEAST_OPACITY + (1 - LEAST_OPACITY) * _uniform(generator, batch, 1, 1, 1)
    share_B1HW = (opacity_B111 * where_B1HW).to(pixels_BCHW)
    return pixels_BCHW + share_B1HW * (_colour(pixels_BCHW.shape, generator).to(pixels_BCHW) - pixels_BCHW)


def warp(pixels_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Images under a smooth field of offsets (as Nguyen and Tran 2021, arXiv 2102.10369)."""
    batch, _, height, width = pixels_BCHW.shape
    field_B2HW = _smooth((batch, 2, height, width), generator)
    field_B2HW = field_B2HW / field_B2HW.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(SMALLEST_NORM)
    # A side of the image is 2 in the coordinates of grid_sample.
    offset_B2HW = 2 * MAX_OFFSET * _uniform(generator, batch, 1, 1, 1) * field_B2HW
    rows_HW, columns_HW = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    positions_BHW2 = torch.stack([columns_HW, rows_HW], dim=-1) + offset_B2HW.permute(0, 2, 3, 1)
    return functional.grid_sample(pixels_BCHW, positions_BHW2.clamp(-1, 1).to(pixels_BCHW), align_corners=True)


FAMILIES: tuple[Callable[[Tensor, torch.Generator], Tensor], ...] = (blend, add_noise, add_wave, paste, cover, warp)


def _smooth(shape: torch.Size | tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Noise enlarged from a coarse grid, the same coarseness for all, each image's largest value 1."""
    cells = int(torch.randint(GRID[0], GRID[1] + 1, (), generator=generator))
    grid_BCGG = torch.randn((*shape[:2], cells, cells), generator=generator)
    return _unit(functional.interpolate(grid_BCGG, size=tuple(shape[2:]), mode="bicubic", align_corners=True))


def _unit(pattern_BCHW: Tensor) -> Tensor:
    return pattern_BCHW / pattern_BCHW.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(SMALLEST_NORM)


def _colour(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """One colour an image, black or white in two thirds of the draws of each channel."""
    return (3 * _uniform(generator, *shape[:2], 1, 1) - 1).clamp(0, 1).expand(shape)


def _coin(batch: int, generator: torch.Generator) -> Tensor:
    return _uniform(generator, batch, 1, 1, 1) < 0.5


def _uniform(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator)
