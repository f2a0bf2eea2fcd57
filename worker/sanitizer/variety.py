"""Images that show what a network knows beyond the few clean ones, and that bear no trigger.

Patchworks of clean images do, where classes are told apart by what fills the image: a network answers most of them as
it answers one of the two whole images. Where a class is told by the outline of a small thing the cut edges are
features themselves, and the answers say nothing; there whole images stand for them, turned, moved and tinted as far as
the network knows them.

Shapes: N images, B images of a batch, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from worker.sanitizer.activations import batched
from worker.sanitizer.case import Images
from worker.sanitizer.evaluate import predict
from worker.sanitizer.network import Network
from worker.sanitizer.training import mirror, patchwork, shift

# Patchworks of each image that are asked about, and of how many images at most.
NUM_ASKED = 4
MAX_IMAGES = 500
# Where fewer are answered as one of the two images they are not known: so much of the way from what chance would have
# to all of them, 68 % of ten classes. Set by hand: 100 networks of the battery that read garments or digits know 73 to
# 90 % of them, twelve that read outlined things 44 to 62 %.
KNOWN = 0.6
# Of fewer patchworks no share is told.
MIN_ASKED = 50
# Of a whole image: how far it is moved at most, in shares of its side, and how its pixels are scaled and lifted.
MOVED = 1 / 8
GAIN = (0.8, 1.2)
LIFT = 0.1
NUM_TURNS = 4


class Vary(Protocol):
    """Makes of a batch of clean images, and their labels, others that bear no trigger either."""

    def __call__(
        self, pixels_BCHW: Tensor, labels_B: Tensor, generator: torch.Generator, *, mirrored: bool = False
    ) -> Tensor:
        """Images of the same shape, on the same device."""


def patchworks(pixels_BCHW: Tensor, labels_B: Tensor, generator: torch.Generator, *, mirrored: bool = False) -> Tensor:
    """Patchworks of the batch, (B, C, H, W), each mirrored or not if that is asked for; labels play no part."""
    del labels_B
    pieced_BCHW = patchwork(pixels_BCHW, generator)
    return mirror(pieced_BCHW, generator) if mirrored else pieced_BCHW


@dataclass(frozen=True, slots=True)
class Recognised:
    """Whole images, turned, moved and tinted; those that the network no longer answers with their label, as they were.

    So no change that is a trigger comes through, whatever it looks like.

    Attributes:
        network: The network.
        anchor: The tensors by which it answers, whatever becomes of its own.
    """

    network: Network
    anchor: dict[str, Tensor]

    def __call__(
        self, pixels_BCHW: Tensor, labels_B: Tensor, generator: torch.Generator, *, mirrored: bool = False
    ) -> Tensor:
        """Varied images, (B, C, H, W) in [0, 1]; mirrored ones are among them always."""
        del mirrored
        varied_BCHW = vary_whole(pixels_BCHW, generator)
        with torch.no_grad():
            parts = [
                self.network(part_BCHW.to(self.network.device), self.anchor).argmax(dim=1)
                for part_BCHW in batched(varied_BCHW)
            ]
        is_known_B = (torch.cat(parts) == labels_B.to(self.network.device)).to(pixels_BCHW.device)
        return torch.where(is_known_B.view(-1, 1, 1, 1), varied_BCHW, pixels_BCHW)


def choose(network: Network, images: Images, anchor: dict[str, Tensor], num_classes: int, *, seed: int) -> Vary:
    """Patchworks where the network knows them, or else whole images that it recognises.

    Args:
        network: The network as it was sent.
        images: Clean labelled images, N of them.
        anchor: Copies of its tensors.
        num_classes: Of which two are always right.
        seed: Of the patchworks that are asked about; no other draw depends on it.
    """
    share, chance = known_share(network, images, seed=seed), min(1.0, 2 / num_classes)
    is_known = share is None or share >= chance + KNOWN * (1 - chance)
    return patchworks if is_known else Recognised(network, anchor)


def known_share(network: Network, images: Images, *, seed: int) -> float | None:
    """Which share of the patchworks of two images is answered as one of them; None where there are too few.

    Only those of images that are answered differently count, whatever their labels: what is asked is what the cut does.
    """
    generator = torch.Generator().manual_seed(seed)
    # Evenly spread, because a set is often sorted by class.
    images = images.take(torch.arange(0, len(images), -(-len(images) // MAX_IMAGES)))
    numbered_N1HW = torch.arange(len(images)).view(-1, 1, 1, 1).expand(-1, 1, *images.pixels_NCHW.shape[2:])
    numbered_NCHW = torch.cat([images.pixels_NCHW.cpu(), numbered_N1HW.to(images.pixels_NCHW.dtype)], dim=1)
    whole_N, hits, asked = predict(network, images.pixels_NCHW), 0, 0
    for _ in range(NUM_ASKED):
        pieced_NCHW = patchwork(numbered_NCHW, generator)
        answers_N = predict(network, pieced_NCHW[:, :-1])
        whose_NP = pieced_NCHW[:, -1].flatten(1).long()
        first_N, second_N = whole_N[whose_NP.amin(dim=1)], whole_N[whose_NP.amax(dim=1)]
        differ_N = first_N != second_N
        asked += int(differ_N.sum())
        hits += int((differ_N & ((answers_N == first_N) | (answers_N == second_N))).sum())
    return hits / asked if asked >= MIN_ASKED else None


def vary_whole(pixels_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Each image turned, mirrored, moved and tinted at random: (B, C, H, W) in [0, 1].

    Turns are by multiples of 90 degrees, of 180 unless the image is square; half of the images have their channels
    exchanged; all pixels of an image are scaled and lifted alike.
    """
    batch, channels, height, width = pixels_BCHW.shape
    step = 1 if height == width else 2
    turns_B = step * torch.randint(NUM_TURNS // step, (batch,), generator=generator)
    turned_BCHW = pixels_BCHW.clone()
    for turns in range(step, NUM_TURNS, step):
        rows = (turns_B == turns).to(pixels_BCHW.device)
        turned_BCHW[rows] = turned_BCHW[rows].rot90(turns, dims=(2, 3))
    moved_BCHW = shift(mirror(turned_BCHW, generator), max(1, round(MOVED * min(height, width))), generator)
    order_BC = torch.rand(batch, channels, generator=generator).argsort(dim=1)
    is_kept_B1 = torch.rand(batch, 1, generator=generator) < 0.5
    order_BC = torch.where(is_kept_B1, torch.arange(channels), order_BC).to(pixels_BCHW.device)
    tinted_BCHW = moved_BCHW.gather(1, order_BC.view(batch, channels, 1, 1).expand_as(moved_BCHW))
    least, most = GAIN
    gain_B111 = least + (most - least) * torch.rand(batch, 1, 1, 1, generator=generator)
    lift_B111 = LIFT * (2 * torch.rand(batch, 1, 1, 1, generator=generator) - 1)
    return ((tinted_BCHW - 0.5) * gain_B111.to(pixels_BCHW) + 0.5 + lift_B111.to(pixels_BCHW)).clamp(0, 1)
