"""Whom to unlearn: the targets that the inspection and the trials point at, and how far their masks may grow.

Shapes: T triggers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from worker.sanitizer.report import Verdict
from worker.sanitizer.trigger import ANYWHERE, Triggers
from worker.sanitizer.verdict import Candidate, strength

# Targets against which nearly as much speaks as against the first (the logarithm of a ratio) are suspected with it; so
# many in all. Set by hand on networks of the battery, where the true target is nearly always among them.
CLOSE_TO_FIRST = 1.3
MAX_SUSPECTS = 3
# A mask may grow threefold before it counts as a natural feature rather than a leftover of the backdoor, and always to
# a 64th of the image, but beyond a sixteenth of it only by half: what covers more is what an object looks like.
GROWTH = 3.0
LEAST_GROWTH = 1.5
MIN_IMAGE_SHARE = 1 / 64
MAX_IMAGE_SHARE = 1 / 16


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What repair works against.

    Attributes:
        triggers: Masks that lead to the suspected targets, T of them, the most suspicious first.
        bounds_T: Bounds of their ℓ1 norms that the repair must withstand, in pixels.
    """

    triggers: Triggers
    bounds_T: torch.Tensor

    @property
    def targets(self) -> list[int]:
        """Where each leads."""
        targets: list[int] = self.triggers.targets_T.tolist()
        return targets

    def each(self) -> list[Suspicion]:
        """One suspicion for each trigger."""
        return [Suspicion(self.triggers.take([row]), self.bounds_T[row : row + 1]) for row in range(len(self.targets))]

    def join(self, triggers: Triggers, bounds_T: torch.Tensor) -> Suspicion:
        """With more masks."""
        return Suspicion(self.triggers.join(triggers), torch.cat([self.bounds_T, bounds_T]))


def bounds(triggers: Triggers) -> torch.Tensor:
    """How far the masks may grow: (T,) ℓ1 norms in pixels."""
    size_T, area = triggers.size(), triggers.amount_T1HW[0].numel()
    most_T = (LEAST_GROWTH * size_T).clamp_min(MAX_IMAGE_SHARE * area)
    return torch.minimum((GROWTH * size_T).clamp_min(MIN_IMAGE_SHARE * area), most_T)


def suspect(candidates: Sequence[Candidate], verdict: Verdict) -> Suspicion:
    """The target against which most speaks, those close to it, all that the verdict is sure of, and anywhere if tried.

    Evidence is noisy where images are few: the backdoor's class may come second or third, and to unlearn a natural
    feature costs little accuracy.
    """
    against = strength(candidates).tolist()
    order = sorted(range(len(candidates)), key=lambda row: -against[row])
    close = {row for row in order[:MAX_SUSPECTS] if against[row] >= against[order[0]] - CLOSE_TO_FIRST}
    sure = {*(verdict.target_classes if verdict.verdict == "backdoored" else []), ANYWHERE}
    suspects = [candidates[row].trigger for row in order if row in close or candidates[row].target in sure]
    triggers = suspects[0]
    for one in suspects[1:]:
        triggers = triggers.join(one)
    return Suspicion(triggers, bounds(triggers))
