"""Whom to unlearn: the targets that the inspection and the trials point at, and how far their masks may grow.

Shapes: T triggers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from worker.sanitizer.report import Verdict
from worker.sanitizer.trigger import ANYWHERE, Triggers
from worker.sanitizer.verdict import Candidate, Findings

# Targets whose trials cost at most this many times the cheapest's cannot be told from it; so many of them are taken.
CLOSE_TO_CHEAPEST = 1.1
MAX_CHEAPEST = 2
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
        triggers: Masks that lead to the suspected targets, T of them.
        bounds_T: Bounds of their ℓ1 norms that the repair must withstand, in pixels.
    """

    triggers: Triggers
    bounds_T: torch.Tensor

    @property
    def targets(self) -> list[int]:
        """Where each leads."""
        targets: list[int] = self.triggers.targets_T.tolist()
        return targets

    def join(self, triggers: Triggers, bounds_T: torch.Tensor) -> Suspicion:
        """With more masks."""
        return Suspicion(self.triggers.join(triggers), torch.cat([self.bounds_T, bounds_T]))


def bounds(triggers: Triggers) -> torch.Tensor:
    """How far the masks may grow: (T,) ℓ1 norms in pixels."""
    size_T, area = triggers.size(), triggers.amount_T1HW[0].numel()
    most_T = (LEAST_GROWTH * size_T).clamp_min(MAX_IMAGE_SHARE * area)
    return torch.minimum((GROWTH * size_T).clamp_min(MIN_IMAGE_SHARE * area), most_T)


def suspect(findings: Findings, candidates: Sequence[Candidate], verdict: Verdict) -> Suspicion:
    """The most reachable class, the cheapest targets, all that the verdict is sure of, and anywhere if it was tried.

    Often they are one class. Where they differ either may be the backdoor's, and a natural feature that is cheap to
    unlearn costs little.
    """
    reach = {target: float(findings.reach[row]) for row, target in enumerate(findings.classes)}
    classes = sorted((one for one in candidates if one.target != ANYWHERE), key=lambda one: one.cost)
    reachable = max(classes, key=lambda one: reach[one.target])
    cheapest = [one for one in classes if one.cost <= CLOSE_TO_CHEAPEST * classes[0].cost][:MAX_CHEAPEST]
    sure = set(verdict.target_classes if verdict.verdict == "backdoored" else []) | {ANYWHERE}
    suspects = [reachable, *cheapest, *(one for one in candidates if one.target in sure)]
    suspects = list({one.target: one for one in suspects}.values())
    triggers = suspects[0].trigger
    for one in suspects[1:]:
        triggers = triggers.join(one.trigger)
    return Suspicion(triggers, bounds(triggers))
