"""Where a recipe stops pruning: the strongest of some nested masks that keeps accuracy on the selection split.

Shapes: C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

from worker.sanitizer import masks, selection
from worker.sanitizer.criteria import Scores
from worker.sanitizer.evaluate import wilson
from worker.sanitizer.network import Site
from worker.sanitizer.recipes.workbench import Outcome, Workbench
from worker.sanitizer.report import Choice, CurvePoint
from worker.sanitizer.spec import AccuracyBudget, SanitizeSpec
from worker.sanitizer.sweep import SweepPoint, sweep

# What pruning may cost where the specification states no accuracy budget.
DEFAULT_ACCURACY_DROP = 0.02
# The papers of ANP and RNP sweep these thresholds of masks in [0, 1], and then pick by the true trigger's success.
THRESHOLDS = tuple(step / 20 for step in range(20))


def max_accuracy_drop(spec: SanitizeSpec) -> float:
    """The specification's accuracy budget, or the default one."""
    return spec.selection.max_accuracy_drop if isinstance(spec.selection, AccuracyBudget) else DEFAULT_ACCURACY_DROP


def max_recall_drop(spec: SanitizeSpec) -> float | None:
    """The specification's bound on the loss of any class's recall, None without one."""
    return spec.selection.max_recall_drop if isinstance(spec.selection, AccuracyBudget) else None


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
    budget, recall_budget = max_accuracy_drop(bench.spec), max_recall_drop(bench.spec)
    chosen = selection.strongest_within_budget(points, budget, recall_budget)
    mask = masks.from_ranking(sites, ranking, chosen.count)
    masks.silence(bench.network, mask)
    num_channels = sum(site.num_channels for site in sites)
    largest = max((t for t, count in zip(THRESHOLDS, counts, strict=True) if count == chosen.count), default=None)
    where = "no threshold" if largest is None else f"the threshold {largest:g}"
    return Outcome(
        choice=Choice(
            num_pruned=chosen.count,
            num_in_scope=num_channels,
            reason=f"Soft masks up to {where}, the largest that loses at most {budget:.1%} of accuracy"
            f"{and_recall(recall_budget)} on the selection split ({points[0].accuracy:.1%} before, "
            f"{chosen.accuracy:.1%} after).",
        ),
        mask=mask,
        scores=soft,
        curve=curve(points, num_channels, len(bench.select), budget, recall_budget),
    )


def and_recall(recall_budget: float | None) -> str:
    """What a sentence on the accuracy budget goes on with."""
    return "" if recall_budget is None else f" and {recall_budget:.1%} of any class's recall"


def curve(
    points: Sequence[SweepPoint],
    num_channels: int,
    num_images: int,
    accuracy_budget: float,
    recall_budget: float | None = None,
) -> list[CurvePoint]:
    """The sweep as the report states it; the first point is the unpruned network.

    Args:
        points: Of the sweep.
        num_channels: In scope.
        num_images: That each point was judged on.
        accuracy_budget: The largest admissible loss of accuracy.
        recall_budget: The largest admissible loss of any class's recall, None for any.
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
                admissible=selection.admissible(point, points[0].accuracy, accuracy_budget, recall_budget),
            )
        )
    return rows


def _sweep(bench: Workbench, sites: Sequence[Site], ranking: masks.Ranking, counts: Sequence[int]) -> list[SweepPoint]:
    distinct = sorted({0, *counts})
    with bench.phase("sweep", len(distinct)) as advance:
        select = bench.select
        return sweep(bench.network, sites, ranking, distinct, select.pixels_NCHW, select.labels, advance=advance)
