"""Choose a point of the curve: by a stated accuracy budget and nothing that a user would not have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from worker.sanitizer.criteria import standardise
from worker.sanitizer.sweep import SweepPoint

# Rates are multiples of 1/N; a budget of exactly k images must not fail by a rounding error.
TOLERANCE = 1e-9


def admissible(point: SweepPoint, baseline: float, max_accuracy_drop: float) -> bool:
    """Whether the point's accuracy is at most `max_accuracy_drop` below the baseline's."""
    return point.accuracy >= baseline - max_accuracy_drop - TOLERANCE


def strongest_within_budget(points: Sequence[SweepPoint], max_accuracy_drop: float) -> SweepPoint:
    """The admissible point with the most pruned channels; the first point is the unpruned network."""
    assert points[0].count == 0
    baseline = points[0].accuracy
    return max((p for p in points if admissible(p, baseline, max_accuracy_drop)), key=lambda p: p.count)


def beyond_deviations(scores: Mapping[str, Tensor], k: float, *, descending: bool) -> int:
    """How many channels lie more than k robust deviations out, on the side that the order prunes first."""
    sign = 1 if descending else -1
    return sum(int((sign * standardise(score_C) > k).sum()) for score_C in scores.values())
