"""Choose a point of the curve: by a stated accuracy budget and nothing that a user would not have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from worker.sanitizer.criteria import standardise
from worker.sanitizer.sweep import SweepPoint

# Rates are multiples of 1/N; a budget of exactly k images must not fail by a rounding error.
TOLERANCE = 1e-9
SUCCESS_TIE = 0.05


def admissible(
    point: SweepPoint, baseline: float, max_accuracy_drop: float, max_recall_drop: float | None = None
) -> bool:
    """Whether the point's accuracy is at most `max_accuracy_drop` below the baseline's, and each recall within its."""
    if max_recall_drop is not None and point.recall_drop > max_recall_drop + TOLERANCE:
        return False
    return point.accuracy >= baseline - max_accuracy_drop - TOLERANCE


def strongest_within_budget(
    points: Sequence[SweepPoint], max_accuracy_drop: float, max_recall_drop: float | None = None
) -> SweepPoint:
    """The admissible point with the most pruned channels; the first point is the unpruned network."""
    return max(_allowed(points, max_accuracy_drop, max_recall_drop), key=lambda p: p.count)


def least_success_within_budget(
    points: Sequence[SweepPoint], max_accuracy_drop: float, max_recall_drop: float | None = None
) -> SweepPoint:
    """The admissible point at which the synthesised triggers work least, of equal ones that with the fewest channels.

    Points whose success is within `SUCCESS_TIE` of the least are equal: the estimate resolves no finer.
    """
    allowed = _allowed(points, max_accuracy_drop, max_recall_drop)
    shares = {point.count: 1.0 if point.success is None else point.success for point in allowed}
    least = min(shares.values())
    return min((p for p in allowed if shares[p.count] <= least + SUCCESS_TIE), key=lambda p: p.count)


def _allowed(points: Sequence[SweepPoint], max_accuracy_drop: float, max_recall_drop: float | None) -> list[SweepPoint]:
    assert points[0].count == 0
    return [point for point in points if admissible(point, points[0].accuracy, max_accuracy_drop, max_recall_drop)]


def accuracy_drop(right_before_N: Tensor, right_after_N: Tensor) -> tuple[float, float]:
    """How much accuracy was lost on the same images, and that difference's standard error.

    Only images whose answer turned right or wrong say anything: with n₁ lost and n₂ won of N, the difference is
    (n₁ - n₂) / N and its variance (n₁ + n₂ - (n₁ - n₂)² / N) / N² (as in McNemar's test).
    """
    number = len(right_before_N)
    lost = int((right_before_N & ~right_after_N).sum())
    won = int((~right_before_N & right_after_N).sum())
    return (lost - won) / number, math.sqrt(lost + won - (lost - won) ** 2 / number) / number


def beyond_deviations(scores: Mapping[str, Tensor], k: float, *, descending: bool) -> int:
    """How many channels lie more than k robust deviations out, on the side that the order prunes first."""
    sign = 1 if descending else -1
    return sum(int((sign * standardise(score_C) > k).sum()) for score_C in scores.values())
