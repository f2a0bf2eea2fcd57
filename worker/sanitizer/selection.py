"""Choose a point of the curve: by a stated accuracy budget and nothing that a user would not have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from worker.sanitizer.criteria import standardise
from worker.sanitizer.sweep import SweepPoint

# Rates are multiples of 1/N; a budget of exactly k images must not fail by a rounding error.
TOLERANCE = 1e-9
SUCCESS_TIE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a pruning may cost.

    Attributes:
        accuracy_drop: The largest loss of clean accuracy.
        recall_drop: The largest loss of any class's recall, None for any.
        errors: How surely: with so many of its standard errors added the mean fall of the label's probability must keep
            the limit of accuracy too; None for the counts alone. Of many points the one that chance favours is chosen,
            and loses more on images that it was not chosen by.
    """

    accuracy_drop: float
    recall_drop: float | None = None
    errors: float | None = None

    def admit(self, point: SweepPoint, baseline: float) -> bool:
        """Whether the point keeps them; `baseline` is the unpruned network's accuracy."""
        if self.recall_drop is not None and point.recall_drop > self.recall_drop + TOLERANCE:
            return False
        surely = -math.inf if self.errors is None else point.label_drop + self.errors * point.label_error
        return all(lost <= self.accuracy_drop + TOLERANCE for lost in (baseline - point.accuracy, surely))


def strongest_within(points: Sequence[SweepPoint], limits: Limits) -> SweepPoint:
    """The admissible point with the most pruned channels; the first point is the unpruned network."""
    return max(_allowed(points, limits), key=lambda p: p.count)


def least_success_within(points: Sequence[SweepPoint], limits: Limits) -> SweepPoint:
    """The admissible point at which the synthesised triggers work least, of equal ones that with the fewest channels.

    Points whose success is within `SUCCESS_TIE` of the least are equal: the estimate resolves no finer.
    """
    allowed = _allowed(points, limits)
    least = min(point.success_at_most for point in allowed)
    return min((p for p in allowed if p.success_at_most <= least + SUCCESS_TIE), key=lambda p: p.count)


def _allowed(points: Sequence[SweepPoint], limits: Limits) -> list[SweepPoint]:
    assert points[0].count == 0
    return [point for point in points if limits.admit(point, points[0].accuracy)]


def beyond_deviations(scores: Mapping[str, Tensor], k: float, *, descending: bool) -> int:
    """How many channels lie more than k robust deviations out, on the side that the order prunes first."""
    sign = 1 if descending else -1
    return sum(int((sign * standardise(score_C) > k).sum()) for score_C in scores.values())
