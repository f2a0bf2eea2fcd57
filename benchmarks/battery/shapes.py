"""A made data set in colour: ten shapes at any place, size, angle and tint, on blotchy grounds. Nothing is downloaded.

Unlike garments and digits the things are not centred, and colour says nothing of the class. Networks are cached by
their configuration, which says nothing of what is drawn here: a change asks for another name of the data set.

Shape legend: N images, S samples a side of an image, two for each pixel, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

SIDE = 32
# Each pixel is the mean of so many samples by so many.
_FINE = 2
# Radius of the disc that holds a thing, in halves of the image's side; it lies wholly within the image.
_RADIUS = (0.35, 0.6)
# A thing and its ground differ by this at least, in the mean over the channels, before blotches and grain.
_CONTRAST = 0.25
_BLOTCHES = 4
_BLOTCHINESS = 0.25
_GRAIN = 0.03
# Drawn so many at once.
_CHUNK = 1000

# Takes coordinates in a thing's own frame, in which it fills the unit disc.
_Inside = Callable[[Tensor, Tensor], Tensor]


def _polygon(corners: int, inner: float) -> _Inside:
    """A star whose inner corners lie at `inner` of the outer ones; cos(pi/n) of it makes a regular polygon."""

    def inside(x: Tensor, y: Tensor) -> Tensor:
        half = math.pi / corners
        angle = torch.atan2(y, x).remainder(2 * half)
        angle = torch.minimum(angle, 2 * half - angle)
        # The line from the outer corner (1, 0) to the inner one, in polar coordinates.
        inner_x, inner_y = inner * math.cos(half), inner * math.sin(half)
        edge = inner_y / (inner_y * angle.cos() + (1 - inner_x) * angle.sin())
        return x.hypot(y) < edge

    return inside


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (x.hypot(y) - 0.75).abs() < 0.25


def _plus(x: Tensor, y: Tensor) -> Tensor:
    return (torch.minimum(x.abs(), y.abs()) < 0.22) & (torch.maximum(x.abs(), y.abs()) < 0.95)


def _crescent(x: Tensor, y: Tensor) -> Tensor:
    return (x.hypot(y) < 1) & ((x - 0.55).hypot(y) > 0.8)


def _pair(x: Tensor, y: Tensor) -> Tensor:
    return (x.abs() - 0.6).hypot(y) < 0.4


def _hollow_square(x: Tensor, y: Tensor) -> Tensor:
    return (torch.maximum(x.abs(), y.abs()) - 0.53).abs() < 0.18


# In the order of the classes.
THINGS: tuple[_Inside, ...] = (
    lambda x, y: x.hypot(y) < 0.9,
    _ring,
    _polygon(3, math.cos(math.pi / 3)),
    _polygon(4, math.cos(math.pi / 4)),
    _hollow_square,
    _polygon(5, 0.4),
    _plus,
    lambda x, y: (x.abs() < 1) & (y.abs() < 0.2),
    _crescent,
    _pair,
)
NUM_CLASSES = len(THINGS)


def draw(num_images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return uint8 images (N, 3, 32, 32) and their int64 labels, classes in turn; a pure function of its arguments."""
    generator = torch.Generator().manual_seed(seed)
    labels_N = torch.arange(num_images) % NUM_CLASSES
    return torch.cat([_drawn(part, generator) for part in labels_N.split(_CHUNK)]), labels_N


def _drawn(labels_N: Tensor, generator: torch.Generator) -> Tensor:
    num = len(labels_N)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(num, *shape, generator=generator)

    line_S = (torch.arange(_FINE * SIDE) + 0.5) / (_FINE * SIDE) * 2 - 1
    radius_N11 = _RADIUS[0] + (_RADIUS[1] - _RADIUS[0]) * uniform(1, 1)
    place_N211 = (2 * uniform(2, 1, 1) - 1) * (1 - radius_N11.unsqueeze(1))
    angle_N11 = 2 * math.pi * uniform(1, 1)
    across_NSS = (line_S - place_N211[:, 0]) / radius_N11
    down_NSS = (line_S.unsqueeze(1) - place_N211[:, 1]) / radius_N11
    x_NSS = angle_N11.cos() * across_NSS + angle_N11.sin() * down_NSS
    y_NSS = angle_N11.cos() * down_NSS - angle_N11.sin() * across_NSS
    inside_NSS = torch.zeros_like(x_NSS, dtype=torch.bool)
    for label, inside in enumerate(THINGS):
        rows = labels_N == label
        inside_NSS[rows] = inside(x_NSS[rows], y_NSS[rows])
    cover_N1HW = functional.avg_pool2d(inside_NSS.float().unsqueeze(1), _FINE)
    ground_N311, tint_N311 = uniform(3, 1, 1), uniform(3, 1, 1)
    # Where the two are alike the tint becomes the colour half a turn away, which differs by a half in each channel.
    is_alike_N111 = (ground_N311 - tint_N311).abs().mean(dim=1, keepdim=True) < _CONTRAST
    tint_N311 = torch.where(is_alike_N111, (ground_N311 + 0.5).remainder(1), tint_N311)
    blotches_N3HW = functional.interpolate(
        uniform(3, _BLOTCHES, _BLOTCHES) - 0.5, size=(SIDE, SIDE), mode="bicubic", align_corners=True
    )
    images_N3HW = torch.lerp(
        ground_N311 + _BLOTCHINESS * blotches_N3HW, tint_N311.expand(num, 3, SIDE, SIDE), cover_N1HW
    )
    grain_N3HW = _GRAIN * torch.randn(images_N3HW.shape, generator=generator)
    return ((images_N3HW + grain_N3HW).clamp(0, 1) * 255).round().to(torch.uint8)
