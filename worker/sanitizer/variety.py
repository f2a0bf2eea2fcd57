"""Images that show what a network knows beyond the few clean ones, and that bear no trigger.

Patchworks of clean images do, where classes are told apart by what fills the image: a network answers most of them as
it answers one of the two whole images. Where a class is told by the outline of a small thing the cut edges are
features themselves, and the answers say nothing; there whole images stand for them, turned, moved and tinted as far as
the network knows them.

Shapes: N images, B images of a batch, C channels, H height, W width, K classes, P patchworks or positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from worker.sanitizer.case import Images
from worker.sanitizer.evaluate import Z_95_ONE_SIDED, predict, probabilities
from worker.sanitizer.network import Network
from worker.sanitizer.training import mirror, patchwork, shift

# So many patchworks of each image are asked about.
NUM_ASKED = 4
# Of more images every second, third ... is asked about.
MAX_IMAGES = 500
# Where fewer are answered as one of the two images they are not known: so much of the way from what chance would have
# to all of them, some 68 % of ten classes, and fewer beyond what chance explains. Set by hand: 105 networks of the
# battery that read garments or digits know 73 to 90 % of them, twelve that read outlined things 44 to 62 %.
KNOWN = 0.6
# With fewer patchworks the share is not estimated, and patchworks are used.
MIN_ASKED = 50
# A varied image is recognised if its label is the answer and no less probable than before by more than this.
MAX_FALL = 0.1
# Where fewer varied images are recognised whole images say too little as well, and patchworks are used.
MIN_RECOGNISED = 0.25
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
    """Whole images, turned, moved and tinted; those that the network does not recognise then stay as they were.

    A change that is a trigger makes the label less probable, unless the trigger leads to the label itself: so it does
    not come through where it would teach anything. No thread may train the network while it is asked.

    Attributes:
        network: The network.
        anchor: The tensors by which it answers, whatever becomes of its own.
    """

    network: Network
    anchor: Mapping[str, Tensor]

    def __call__(
        self, pixels_BCHW: Tensor, labels_B: Tensor, generator: torch.Generator, *, mirrored: bool = False
    ) -> Tensor:
        """Varied images, (B, C, H, W) in [0, 1]; mirrored ones are among them always."""
        del mirrored
        varied_BCHW = vary_whole(pixels_BCHW, generator)
        is_known_B = self.knows(pixels_BCHW, varied_BCHW, labels_B).to(pixels_BCHW.device)
        return torch.where(is_known_B.view(-1, 1, 1, 1), varied_BCHW, pixels_BCHW)

    def knows(self, pixels_BCHW: Tensor, varied_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        """Which of the varied images are recognised, (B,) bool on the CPU."""
        before_BK, after_BK = (probabilities(self.network, one, self.anchor) for one in (pixels_BCHW, varied_BCHW))
        labels_B = labels_B.cpu()
        fall_B = (before_BK - after_BK).gather(1, labels_B.unsqueeze(1)).squeeze(1)
        return (after_BK.argmax(dim=1) == labels_B) & (fall_B <= MAX_FALL)


class Known(NamedTuple):
    """What a network knows of patchworks.

    Attributes:
        share: Of those of two images that are answered differently, how many are answered as one of them.
        chance: The share that the same answers would have if they had nothing to do with the images.
        num_asked: Patchworks.
        num_images: Images that they are pieced together of.
    """

    share: float
    chance: float
    num_asked: int
    num_images: int

    @property
    def needed(self) -> float:
        """The share from which on patchworks are known."""
        return self.chance + KNOWN * (1 - self.chance)

    @property
    def is_enough(self) -> bool:
        """Whether they are, as far as chance can tell (one-sided, 95 %): patchworks of one image count as one."""
        error = math.sqrt(self.share * (1 - self.share) / self.num_images)
        return self.share + Z_95_ONE_SIDED * error >= self.needed


def choose(network: Network, images: Images, anchor: Mapping[str, Tensor], *, seed: int) -> tuple[Vary, str]:
    """Patchworks where the network knows them, or else whole images if it recognises them, and why in a sentence.

    The sentence is empty for patchworks.

    Args:
        network: The network as it was sent.
        images: Clean labelled images, N of them.
        anchor: Copies of its tensors.
        seed: Of what is asked; no other draw depends on it.
    """
    # Evenly spread, because a set is often sorted by class.
    images = images.take(torch.arange(0, len(images), -(-len(images) // MAX_IMAGES)))
    generator = torch.Generator().manual_seed(seed)
    known = known_patchworks(network, images, generator)
    if known is None or known.is_enough:
        return patchworks, ""
    whole = Recognised(network, anchor)
    varied_NCHW = vary_whole(images.pixels_NCHW, generator)
    recognised = float(whole.knows(images.pixels_NCHW, varied_NCHW, images.labels).double().mean())
    if recognised < MIN_RECOGNISED:
        return patchworks, ""
    return whole, (
        f"The network answers {known.share:.0%} of {known.num_asked} patchworks of clean images as one of the two "
        f"images, and {known.needed:.0%} are needed to learn from them; so whole images, turned, moved and tinted, "
        f"took their place where it recognises them ({recognised:.0%}). The thresholds and the false-positive rate "
        "were set on networks that know patchworks."
    )


def known_patchworks(network: Network, images: Images, generator: torch.Generator) -> Known | None:
    """How many patchworks of the images the network answers as one of the two; None where there are too few.

    Only those of images that are answered differently count, whatever their labels: what is asked is what the cut does.
    """
    numbered_N1HW = torch.arange(len(images)).view(-1, 1, 1, 1).expand(-1, 1, *images.pixels_NCHW.shape[2:])
    numbered_NCHW = torch.cat([images.pixels_NCHW.cpu(), numbered_N1HW.to(images.pixels_NCHW.dtype)], dim=1)
    whole_N, seen = predict(network, images.pixels_NCHW), []
    for _ in range(NUM_ASKED):
        pieced_NCHW = patchwork(numbered_NCHW, generator)
        whose_NP = pieced_NCHW[:, -1].flatten(1).long()
        first_N, second_N = whole_N[whose_NP.amin(dim=1)], whole_N[whose_NP.amax(dim=1)]
        seen.append(torch.stack([predict(network, pieced_NCHW[:, :-1]), first_N, second_N])[:, first_N != second_N])
    answer_P, first_P, second_P = torch.cat(seen, dim=1)
    if len(answer_P) < MIN_ASKED:
        return None
    share = float(((answer_P == first_P) | (answer_P == second_P)).double().mean())
    classes = range(int(torch.stack([answer_P, first_P, second_P]).max()) + 1)
    answered_K = torch.stack([(answer_P == k).double().mean() for k in classes])
    offered_K = torch.stack([((first_P == k) | (second_P == k)).double().mean() for k in classes])
    return Known(share, float(answered_K @ offered_K), len(answer_P), len(images))


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
