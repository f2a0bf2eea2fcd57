"""Pruning alone: cut each suspect's trigger off by the few channels that carry it, or leave that suspect be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from worker.sanitizer import masks
from worker.sanitizer.ablation import ablate
from worker.sanitizer.criteria import Scores, standardise
from worker.sanitizer.evaluate import log_probabilities
from worker.sanitizer.exhibits import Suspected
from worker.sanitizer.masks import Ranking
from worker.sanitizer.network import Site
from worker.sanitizer.recipes.channel_scores import channel_scores, raw_scores
from worker.sanitizer.recipes.prune import looked_at
from worker.sanitizer.recipes.scope import in_scope
from worker.sanitizer.recipes.thresholds import at_most, curve
from worker.sanitizer.recipes.workbench import Outcome, Workbench
from worker.sanitizer.report import Choice
from worker.sanitizer.selection import Limits, least_success_within
from worker.sanitizer.spec import NEEDS_TRIGGERS, NORM_CRITERIA, AccuracyBudget
from worker.sanitizer.sweep import SweepPoint, sweep

# So many channels that score highest by the specification's criterion are tried, and as many that add most to the
# suspect's logit.
NUM_PROPOSED = 16
# Patchworks of clean images that are asked after each trial.
NUM_IMAGES = 128
# Channels that a suspect may cost.
MAX_CHANNELS = 8
# A suspect's trigger must fall to this share of its success, or nothing is pruned for it: what withstands the loss of
# the channels that carry most of it is no shortcut but a natural feature, and to prune that is all loss.
MAX_SHARE_LEFT = 0.5


def cut_off(bench: Workbench, triggers: Sequence[Suspected], limits: Limits) -> Outcome:
    """For each suspect in turn silence channels one by one, while the limits hold, if its trigger fails of it.

    A ranking by what channels do under the trigger has those that carry it near the top, and others among them; of two
    that it needs one may do. So the criteria only propose, and what silencing a channel really does decides.

    Args:
        bench: The workbench, asked for an accuracy budget; its network is pruned afterwards. Its selection split judges
            every step.
        triggers: Of the suspects, the strongest first.
        limits: Of what may be lost.

    Raises:
        NetworkRefusedError: The specification's scope names a layer that is not there.
    """
    network, images, selection = bench.network, bench.repair, bench.spec.selection
    assert isinstance(selection, AccuracyBudget)
    sites = in_scope(network, bench.spec.scope)
    material = looked_at(bench, sites, triggers)
    scores, by_criterion = channel_scores(material)
    sites = tuple(site for site in sites if site.name in scores)
    num_channels = sum(site.num_channels for site in sites)
    most_of_all = max(1, round(selection.max_fraction * num_channels))
    proposed = [_proposed(bench, sites, one, scores) for one in triggers]
    gone: Ranking = []
    with bench.phase("cut_off", MAX_CHANNELS * len(triggers)) as advance:
        some = torch.randperm(len(images), generator=bench.generator)[:NUM_IMAGES]
        shown = images.take(some)
        clean_NCHW = bench.vary(shown.pixels_NCHW.to(network.device), shown.labels, bench.generator)
        answers_NK = log_probabilities(network, clean_NCHW)
        for one, pool in zip(triggers, proposed, strict=True):
            most = min(MAX_CHANNELS, most_of_all - len(gone))
            path = gone + ablate(
                network, sites, pool, clean_NCHW, one.triggers.stamp(clean_NCHW, one.which), answers_NK,
                silent=gone, most=most, advance=advance,
            )  # fmt: skip
            advance(MAX_CHANNELS - most)
            points = _swept(bench, sites, path, {0, *range(len(gone), len(path) + 1)}, [one])
            gone = path[: _far_enough(points, len(gone), limits)]
        points = _swept(bench, sites, gone, range(len(gone) + 1), triggers)
    mask = masks.from_ranking(sites, gone, len(gone))
    masks.silence(network, mask)
    seen = f"on {len(bench.select)} images that were not held out"
    reason = (
        f"The channels without which a suspect's trigger fails, as far as this {at_most(limits)} {seen} "
        f"({points[0].accuracy:.1%} before, {points[-1].accuracy:.1%} after)."
        if gone
        else f"Nothing was pruned: no suspect's trigger fails of what {at_most(limits)} {seen}."
    )
    return Outcome(
        choice=Choice(num_pruned=len(gone), num_in_scope=num_channels, reason=reason),
        mask=mask,
        scores=scores,
        by_criterion=by_criterion,
        statistics=material.clean,
        curve=curve(points, num_channels, len(bench.select), limits),
        triggers=list(triggers),
        triggered=material.triggered,
    )


def _proposed(bench: Workbench, sites: Sequence[Site], one: Suspected, scores: Scores) -> Ranking:
    """The channels that score highest under the trigger, and those that add most to where it leads, by layer.

    Where the client's trigger samples guide, they take the trigger's place. `scores` are those of all triggers.
    """
    material = looked_at(bench, sites, [one])
    if any(name in {*NORM_CRITERIA, *NEEDS_TRIGGERS} for name in bench.spec.criteria):
        scores = channel_scores(material).scores
    added = {name: standardise(score_C) for name, score_C in raw_scores(material, "logit_contribution").items()}
    by_criterion = masks.rank(scores, descending=bench.spec.order == "descending")
    return list(dict.fromkeys([*by_criterion[:NUM_PROPOSED], *masks.rank(added)[:NUM_PROPOSED]]))


def _far_enough(points: Sequence[SweepPoint], start: int, limits: Limits) -> int:
    """How many channels of the path go: of the points that keep the limits and cut the trigger off, the best."""
    most_left = MAX_SHARE_LEFT * next(point.success_at_most for point in points if point.count == start)
    cut = [point for point in points if point.count > start and point.success_at_most <= most_left]
    return least_success_within([points[0], *cut], limits).count or start


def _swept(
    bench: Workbench, sites: Sequence[Site], path: Ranking, counts: Iterable[int], triggers: Sequence[Suspected]
) -> list[SweepPoint]:
    select, each = bench.select, [one.trigger for one in triggers]
    return sweep(bench.network, sites, path, sorted(counts), select.pixels_NCHW, select.labels, triggers=each)
