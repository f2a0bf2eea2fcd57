"""Where a recipe stops pruning: the strongest of some nested masks that keeps accuracy on the selection split.

Shapes: C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

from worker.sanitizer import masks
from worker.sanitizer.criteria import Scores
from worker.sanitizer.evaluate import wilson
from worker.sanitizer.network import Site
from worker.sanitizer.recipes.workbench import Outcome, Workbench
from worker.sanitizer.report import Choice, CurvePoint
from worker.sanitizer.selection import Limits, strongest_within
from worker.sanitizer.spec import AccuracyBudget, SanitizeSpec
from worker.sanitizer.sweep import SweepPoint, sweep

# What pruning may cost where the specification states no accuracy budget.
DEFAULT_ACCURACY_DROP = 0.02
# The papers of ANP and RNP sweep these thresholds of masks in [0, 1], and then pick by the true trigger's success.
THRESHOLDS = tuple(step / 20 for step in range(20))


def limits_of(spec: SanitizeSpec) -> Limits:
    """The specification's accuracy budget, or the default one."""
    if isinstance(spec.selection, AccuracyBudget):
        return Limits(accuracy_drop=spec.selection.max_accuracy_drop, recall_drop=spec.selection.max_recall_drop)
    return Limits(accuracy_drop=DEFAULT_ACCURACY_DROP)


def prune_low_masks(bench: Workbench, sites: Sequence[Site], soft: Scores) -> Outcome:
    """Silence the channels whose soft mask is at most the largest threshold that the accuracy budget admits.

    Args:
        bench: The workbench; its network has its original tensors, and is pruned afterwards.
        sites: The sites that have a soft mask.
        soft: Per site the learnt mask, (C,) in [0, 1].
    """
    ranking = masks.rank(soft, descending=False)
    counts = [sum(float(soft[name][channel]) <= threshold for name, channel in ranking) for threshold in THRESHOLDS]
    points = _sweep(bench, sites, ranking, counts)
    limits = limits_of(bench.spec)
    chosen = strongest_within(points, limits)
    mask = masks.from_ranking(sites, ranking, chosen.count)
    masks.silence(bench.network, mask)
    num_channels = sum(site.num_channels for site in sites)
    largest = max((t for t, count in zip(THRESHOLDS, counts, strict=True) if count == chosen.count), default=None)
    where = "no threshold" if largest is None else f"the threshold {largest:g}"
    return Outcome(
        choice=Choice(
            num_pruned=chosen.count,
            num_in_scope=num_channels,
            reason=f"Soft masks up to {where}, the largest that {at_most(limits)} on the selection split "
            f"({points[0].accuracy:.1%} before, {chosen.accuracy:.1%} after).",
        ),
        mask=mask,
        scores=soft,
        curve=curve(points, num_channels, len(bench.select), limits),
    )


def at_most(limits: Limits) -> str:
    """What a sentence says of a pruning that keeps them."""
    verb = "surely loses" if limits.errors is not None else "loses"
    recall = "" if limits.recall_drop is None else f" and {limits.recall_drop:.1%} of any class's recall"
    return f"{verb} at most {limits.accuracy_drop:.1%} of accuracy{recall}"


def curve(points: Sequence[SweepPoint], num_channels: int, num_images: int, limits: Limits) -> list[CurvePoint]:
    """The sweep as the report states it; the first point is the unpruned network.

    Args:
        points: Of the sweep.
        num_channels: In scope.
        num_images: That each point was judged on.
        limits: Of what is admissible.
    """
    rows = []
    for point in points:
        interval = wilson(round(point.accuracy * num_images), num_images)
        rows.append(
            CurvePoint(
                num_pruned=point.count,
                fraction=point.count / num_channels,
                accuracy=point.accuracy,
                accuracy_low=interval.low,
                accuracy_high=interval.high,
                worst_recall_drop=point.recall_drop,
                synthetic_attack_success=point.success,
                admissible=limits.admit(point, points[0].accuracy),
            )
        )
    return rows


def _sweep(bench: Workbench, sites: Sequence[Site], ranking: masks.Ranking, counts: Sequence[int]) -> list[SweepPoint]:
    distinct = sorted({0, *counts})
    with bench.phase("sweep", len(distinct)) as advance:
        select = bench.select
        return sweep(bench.network, sites, ranking, distinct, select.pixels_NCHW, select.labels, advance=advance)
