"""Whom to unlearn: the targets that the inspection and the trials point at, and how far their masks may grow.

Shapes: T triggers.
"""

from __future__ import annotations

import functools
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
# Nor does it matter what nature says of one eight times smaller than the median class's: a witness may have learnt a
# loud backdoor too. In clean networks of the battery none was five times smaller.
TINY = math.log(8)
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
            its classes are tiny or small beside what is natural, or there is doubt and a class is loud, or the loudest
            of those that are rather loud, which may be a thing.
        by_loudness: Whether the verdict is sure by loudness alone: nature explains the class that it names.
    """

    triggers: Triggers
    bounds_T: torch.Tensor
    taught_T: torch.Tensor
    of_small_masks: bool
    by_loudness: bool

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
    """Whom to unlearn, and how widely."""
    taken = _whom(candidates, verdict)
    triggers = functools.reduce(Triggers.join, (candidates[row].trigger for row in taken.rows))
    bounds_T, taught_T = _how_far(triggers, candidates, taken)
    by_loudness = verdict.verdict == "backdoored" and float(strength(candidates).amax()) <= BACKDOORED_STRENGTH
    return Suspicion(triggers, bounds_T, taught_T, taken.of_small_masks, by_loudness)


@dataclass(frozen=True, slots=True)
class _Taken:
    """Rows of the candidates that are unlearnt.

    Attributes:
        rows: All of them, the surest first.
        sure: Of classes that the verdict is sure of, or that are loud, or of a tiny mask.
        wide: The sure ones that are loud, or of a small mask.
        strongest: Of the class of the strongest evidence, taken or not.
        of_small_masks: As a `Suspicion` has it.
    """

    rows: list[int]
    sure: list[int]
    wide: list[int]
    strongest: int
    of_small_masks: bool


def _whom(candidates: Sequence[Candidate], verdict: Verdict) -> _Taken:
    """Choose the rows.

    Where the verdict is sure, its classes, and where it is so by loudness alone, those that are stronger than the loud;
    elsewhere the strongest, those that it names and those that are cheap to unlearn. Unless it is beyond doubt, those
    that are loud, or the loudest. Beside them those of a small or tiny mask, and the trigger that leads anywhere, if it
    was tried: where the verdict is sure of that one alone it may be all.
    """
    strength_T, relief_T = strength(candidates), relief(candidates)
    classes = [row for row, one in enumerate(candidates) if one.target != ANYWHERE]
    classes.sort(key=lambda row: -float(strength_T[row]))
    anywhere = [row for row, one in enumerate(candidates) if one.target == ANYWHERE]
    tiny = [row for row in classes if candidates[row].said.prominence > TINY]
    small = [row for row in classes if candidates[row].said.excess_prominence > SMALL or row in tiny]
    named = [row for row in classes if candidates[row].target in verdict.target_classes]
    strongest = float(strength_T[classes[0]])
    loud = _loud(candidates, classes) if strongest <= CERTAIN_STRENGTH else []
    is_sure = verdict.verdict == "backdoored"
    sure = [*(named if is_sure else []), *loud, *tiny]
    close = [row for row in classes if float(strength_T[row]) >= strongest - CLOSE_TO_STRONGEST][:MAX_CLOSE]
    likely = [*close, *named, *(row for row in classes if float(relief_T[row]) > CHEAP)]
    if is_sure and strongest <= BACKDOORED_STRENGTH and loud and not anywhere:
        likely = [row for row in close if float(strength_T[row]) > float(strength_T[loud].amax())]
    elif is_sure and (sure or anywhere):
        likely = []
    return _Taken(
        rows=list(dict.fromkeys([*sure, *likely, *small, *anywhere])),
        sure=sure,
        wide=[*loud, *(row for row in sure if row in small)],
        strongest=classes[0],
        of_small_masks=is_sure and (bool(loud) or all(row in small for row in named)),
    )


def _loud(candidates: Sequence[Candidate], classes: Sequence[int]) -> list[int]:
    """Those of the classes that are loud, or else the loudest of those that are not dear, if it is rather loud."""
    loudness_T, relief_T = loudness(candidates), relief(candidates)
    loud = [row for row in classes if float(loudness_T[row]) > LOUD_MEDIAN]
    # Never empty: half of the classes are no dearer than the median.
    loudest = max((row for row in classes if float(relief_T[row]) > DEAR), key=lambda row: float(loudness_T[row]))
    return loud or ([loudest] if float(loudness_T[loudest]) > RATHER_LOUD else [])


def _how_far(triggers: Triggers, candidates: Sequence[Candidate], taken: _Taken) -> tuple[torch.Tensor, torch.Tensor]:
    """The bounds that the repair must withstand and those of what is unlearnt, each (T,) pixels."""
    bounds_T = bounds(triggers)
    # A mask that leads anywhere and is larger yet is what an object looks like. Where one was tried the masks of
    # classes are its shadows, and keep to their bounds too.
    if ANYWHERE in triggers.targets_T.tolist():
        return bounds_T, bounds_T
    expected_T = torch.tensor([candidates[row].said.expected_size for row in taken.rows]).to(bounds_T)
    is_sure_T, is_wide_T, is_strongest_T = (
        torch.tensor([row in rows for row in taken.rows], device=bounds_T.device)
        for rows in (taken.sure, taken.wide, [taken.strongest])
    )
    least_T = MIN_IMAGE_SHARE * triggers.amount_T1HW[0].numel() * is_sure_T
    natural_T = torch.maximum(NATURAL_SHARE * expected_T, least_T)
    bounds_T = torch.where(is_wide_T, bounds_T, torch.minimum(bounds_T, natural_T))
    reaches_T = is_wide_T | (is_strongest_T & expected_T.isinf())
    return bounds_T, torch.where(reaches_T, REACH * bounds_T, bounds_T)
