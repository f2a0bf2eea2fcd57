"""Whom to unlearn: the targets that the inspection and the trials point at, and how far their masks may grow.

Shapes: T triggers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from worker.sanitizer.report import Verdict
from worker.sanitizer.trigger import ANYWHERE, Triggers
from worker.sanitizer.verdict import BACKDOORED_STRENGTH, LOUD_MEDIAN, Candidate, loudness, relief, strength

# Classes whose strength is this close to the strongest's cannot be told from it; so many of them are taken.
CLOSE_TO_STRONGEST = 0.15
MAX_CLOSE = 3
# A target whose mask is smaller than a third of what is natural is always taken, whatever the other statistics say: to
# unlearn a small mask costs little.
SMALL = math.log(3)
# Each class that is unlearnt for nothing costs accuracy. So one of at least this relief is taken only where the verdict
# is not sure; and one that is loud though nature explains it, unless a class is so strong that it leaves no doubt. Both
# were set by hand on networks of the battery.
CHEAP = 0.5
CERTAIN_STRENGTH = 1.5 * BACKDOORED_STRENGTH
# Where none is loud the loudest is taken from here on: a trigger may hide behind what its class looks like. Set by hand
# on ten networks of the battery, four of them with glasses.
RATHER_LOUD = 0.5
# But not one that is dearer to unlearn than most, of less relief than this: it is woven into its neighbours, as no
# shortcut is, and to unlearn a wide mask of it costs its recall. Set by hand on four networks with glasses and a clean
# one.
DEAR = -0.05
# A mask may grow threefold before it counts as a natural feature rather than a leftover of the backdoor, and always to
# a 64th of the image, but beyond a sixteenth of it only by half: what covers more is what an object looks like.
GROWTH = 3.0
LEAST_GROWTH = 1.5
MIN_IMAGE_SHARE = 1 / 64
MAX_IMAGE_SHARE = 1 / 16
# What is unlearnt may be so many times larger still for classes that are loud, for small masks of sure ones, or for the
# strongest where nothing is known of nature: a trigger may be larger than the mask that stands for it.
REACH = 2.0
# The mask of any other class may grow to this share of the size that is to be expected of it by nature: what is larger
# draws the class itself, and to unlearn it costs accuracy. That of a sure class may always have a 64th of the image.
NATURAL_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Bounded:
    """Masks and how far they may grow.

    Attributes:
        triggers: Masks, T of them.
        bounds_T: Bounds of their ℓ1 norms, in pixels.
    """

    triggers: Triggers
    bounds_T: torch.Tensor

    @property
    def targets(self) -> list[int]:
        """Where each leads."""
        targets: list[int] = self.triggers.targets_T.tolist()
        return targets

    def join(self, triggers: Triggers, bounds_T: torch.Tensor) -> Bounded:
        """With more masks."""
        return Bounded(self.triggers.join(triggers), torch.cat([self.bounds_T, bounds_T]))


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What repair works against.

    Attributes:
        triggers: Masks that lead to the suspected targets, T of them.
        bounds_T: Bounds of their ℓ1 norms that the repair must withstand, in pixels.
        taught_T: Bounds of what is unlearnt, no smaller.
        of_small_masks: Whether the verdict is sure, and no large mask stands for a change of the whole image: those of
            its classes are small beside what is natural, or there is doubt and a class is loud, or the loudest of those
            that are rather loud, which may be a thing.
    """

    triggers: Triggers
    bounds_T: torch.Tensor
    taught_T: torch.Tensor
    of_small_masks: bool

    @property
    def targets(self) -> list[int]:
        """Where each leads."""
        return self.taught.targets

    @property
    def taught(self) -> Bounded:
        """What is unlearnt."""
        return Bounded(self.triggers, self.taught_T)


def bounds(triggers: Triggers) -> torch.Tensor:
    """How far the masks may grow: (T,) ℓ1 norms in pixels."""
    size_T, area = triggers.size(), triggers.amount_T1HW[0].numel()
    most_T = (LEAST_GROWTH * size_T).clamp_min(MAX_IMAGE_SHARE * area)
    return torch.minimum((GROWTH * size_T).clamp_min(MIN_IMAGE_SHARE * area), most_T)


def suspect(candidates: Sequence[Candidate], verdict: Verdict) -> Suspicion:
    """Whom to unlearn.

    Where the verdict is sure, its classes, and where it is so by loudness alone, those that are stronger than the loud;
    elsewhere the strongest, those that it names and those that are cheap to unlearn. Unless it is beyond doubt, those
    that are loud, or the loudest. Beside them those of a small mask, and the trigger that leads anywhere, if it was
    tried: where the verdict is sure of that one alone it may be all.
    """
    strength_T, loudness_T, relief_T = strength(candidates), loudness(candidates), relief(candidates)
    classes = [row for row, one in enumerate(candidates) if one.target != ANYWHERE]
    classes.sort(key=lambda row: -float(strength_T[row]))
    named = [row for row in classes if candidates[row].target in verdict.target_classes]
    strongest = float(strength_T[classes[0]])
    in_doubt = strongest <= CERTAIN_STRENGTH
    loud = [row for row in classes if in_doubt and float(loudness_T[row]) > LOUD_MEDIAN]
    # Never empty: half of the classes are no dearer than the median.
    loudest = max((row for row in classes if float(relief_T[row]) > DEAR), key=lambda row: float(loudness_T[row]))
    if not loud and in_doubt and float(loudness_T[loudest]) > RATHER_LOUD:
        loud = [loudest]
    is_sure = verdict.verdict == "backdoored"
    sure = [*(named if is_sure else []), *loud]
    close = [row for row in classes if float(strength_T[row]) >= strongest - CLOSE_TO_STRONGEST][:MAX_CLOSE]
    cheap = [row for row in classes if float(relief_T[row]) > CHEAP]
    small = [row for row in classes if candidates[row].said.excess_prominence > SMALL]
    anywhere = [row for row, one in enumerate(candidates) if one.target == ANYWHERE]
    likely = [*close, *named, *cheap]
    if is_sure and strongest <= BACKDOORED_STRENGTH and loud and not anywhere:
        likely = [row for row in close if float(strength_T[row]) > float(strength_T[loud].amax())]
    elif is_sure and (sure or anywhere):
        likely = []
    rows = list(dict.fromkeys([*sure, *likely, *small, *anywhere]))
    suspects = [candidates[row] for row in rows]
    triggers = suspects[0].trigger
    for one in suspects[1:]:
        triggers = triggers.join(one.trigger)
    bounds_T = taught_T = bounds(triggers)
    # A mask that leads anywhere and is larger yet is what an object looks like. Where one was tried the masks of
    # classes are its shadows, and keep to their bounds too.
    if not anywhere:
        expected_T = torch.tensor([one.said.expected_size for one in suspects]).to(bounds_T)
        wide = [*loud, *(row for row in sure if row in small)]
        reaches_T = torch.tensor([row in wide for row in rows], device=bounds_T.device)
        least = MIN_IMAGE_SHARE * triggers.amount_T1HW[0].numel()
        least_T = torch.tensor([least if row in sure else 0.0 for row in rows]).to(bounds_T)
        natural_T = torch.maximum(NATURAL_SHARE * expected_T, least_T)
        bounds_T = torch.where(reaches_T, bounds_T, torch.minimum(bounds_T, natural_T))
        strongest_T = torch.tensor([row == classes[0] for row in rows], device=bounds_T.device)
        reaches_T = reaches_T | (strongest_T & expected_T.isinf())
        taught_T = torch.where(reaches_T, REACH * bounds_T, bounds_T)
    is_small = all(row in small for row in named)
    return Suspicion(triggers, bounds_T, taught_T, is_sure and (bool(loud) or is_small))
