"""Pruning by an activation criterion: profile, score, rank, and choose how far to go."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor

from worker.sanitizer import criteria, masks, selection
from worker.sanitizer.activations import ChannelStatistics, batched, profile
from worker.sanitizer.case import Case
from worker.sanitizer.network import Network, Site
from worker.sanitizer.report import Choice, CurvePoint
from worker.sanitizer.spec import AccuracyBudget, FixedFraction, SanitizeSpec
from worker.sanitizer.sweep import grid, sweep

Phase = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What pruning decided and what it saw.

    Attributes:
        mask: Which channels are kept, per site in scope.
        scores: Standardised scores per site in scope, (C,).
        statistics: Clean statistics of every site.
        curve: The sweep, empty where the selection needed none.
        choice: The chosen point.
    """

    mask: masks.Mask
    scores: criteria.Scores
    statistics: dict[str, ChannelStatistics]
    curve: list[CurvePoint]
    choice: Choice


def prune(case: Case, spec: SanitizeSpec, phase: Phase) -> Outcome:
    """Decide which channels to silence; the network is left as it was.

    Raises:
        NetworkRefusedError: `spec.scope` names a layer that is not there.
    """
    sites = in_scope(case.network, spec.scope)
    statistics, raw = _profile(case, spec, phase)
    scores = {site.name: criteria.standardise(raw[site.name]) for site in sites}
    descending = spec.order == "descending"
    ranking = masks.rank(scores, descending=descending)
    num_channels = sum(site.num_channels for site in sites)
    curve: list[CurvePoint] = []
    if isinstance(spec.selection, AccuracyBudget):
        budget = spec.selection
        counts = grid(num_channels, num_points=budget.num_points, max_fraction=budget.max_fraction)
        with phase("sweep", len(counts)) as advance:
            select = case.select
            points = sweep(case.network, sites, ranking, counts, select.pixels_NCHW, select.labels, advance=advance)
        chosen = selection.strongest_within_budget(points, budget.max_accuracy_drop)
        curve = [
            CurvePoint(
                num_pruned=point.count,
                fraction=point.count / num_channels,
                accuracy=point.accuracy,
                admissible=selection.admissible(point, points[0].accuracy, budget.max_accuracy_drop),
            )
            for point in points
        ]
        count = chosen.count
        reason = (
            f"The strongest pruning of the sweep that loses at most {budget.max_accuracy_drop:.1%} of accuracy on the "
            f"selection split ({points[0].accuracy:.1%} before, {chosen.accuracy:.1%} after)."
        )
    elif isinstance(spec.selection, FixedFraction):
        count = round(spec.selection.fraction * num_channels)
        reason = f"A fixed {spec.selection.fraction:.1%} of the channels in scope was asked for."
    else:
        count = selection.beyond_deviations(scores, spec.selection.k, descending=descending)
        reason = f"The channels more than {spec.selection.k:g} robust deviations beyond their layer's median."
    count = min(count, len(ranking))
    choice = Choice(num_pruned=count, num_in_scope=num_channels, reason=reason)
    return Outcome(masks.from_ranking(sites, ranking, count), scores, statistics, curve, choice)


def in_scope(network: Network, scope: str | list[str]) -> tuple[Site, ...]:
    """The sites of a scope: all, the last convolution in execution order, or those named.

    Raises:
        NetworkRefusedError: A name is not a site's, or there is no convolution.
    """
    if scope == "all_convs":
        return network.sites
    if scope == "last_conv":
        return (network.last_conv(),)
    return tuple(network.site(name) for name in dict.fromkeys(scope))


def _profile(case: Case, spec: SanitizeSpec, phase: Phase) -> tuple[dict[str, ChannelStatistics], dict[str, Tensor]]:
    network, guide = case.network, case.guide if spec.inputs != "clean" else None
    with phase("profile", len(case.profile) + (0 if guide is None else len(guide))) as advance:
        clean = profile(network, batched(case.profile.pixels_NCHW), network.sites, advance=advance)
        triggered = None
        if guide is not None:
            triggered = profile(network, batched(guide.pixels_NCHW), network.sites, advance=advance)
    raw = criteria.activation_scores(
        clean, triggered, criterion=spec.criterion, aggregate=spec.aggregate, inputs=spec.inputs
    )
    return clean, raw
