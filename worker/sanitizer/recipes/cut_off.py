"""Pruning alone: cut each suspect's trigger off by the few channels that carry it, or leave that suspect be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from worker.sanitizer import masks
from worker.sanitizer.ablation import ablate
from worker.sanitizer.criteria import standardise
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
from worker.sanitizer.spec import AccuracyBudget
from worker.sanitizer.sweep import SweepPoint, sweep
from worker.sanitizer.training import patchwork

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
    num_channels = sum(site.num_channels for site in sites)
    most = max(1, round(selection.max_fraction * num_channels))
    material = looked_at(bench, sites, triggers)
    scores = channel_scores(material)
    gone: Ranking = []
    with bench.phase("cut_off", MAX_CHANNELS * len(triggers)) as advance:
        some = torch.randperm(len(images), generator=bench.generator)[:NUM_IMAGES]
        clean_NCHW = patchwork(images.pixels_NCHW[some].to(network.device), bench.generator)
        answers_NK = log_probabilities(network, clean_NCHW)
        for one in triggers:
            stamped_NCHW = one.triggers.stamp(clean_NCHW, one.which)
            path = gone + ablate(
                network, sites, _proposed(bench, sites, one), clean_NCHW, stamped_NCHW, answers_NK,
                silent=gone, most=min(MAX_CHANNELS, most - len(gone)), advance=advance,
            )  # fmt: skip
            points = _swept(bench, sites, path, {0, *range(len(gone), len(path) + 1)}, [one])
            before = next(point for point in points if point.count == len(gone))
            best = least_success_within(points, limits)
            if best.count > before.count and _success(best) <= MAX_SHARE_LEFT * _success(before):
                gone = path[: best.count]
        points = _swept(bench, sites, gone, range(len(gone) + 1), triggers)
    mask = masks.from_ranking(sites, gone, len(gone))
    masks.silence(network, mask)
    reason = (
        f"Channels without which a suspect's trigger fails, as many as {at_most(limits)} on {len(bench.select)} images "
        f"that were not held out ({points[0].accuracy:.1%} before, {points[-1].accuracy:.1%} after)."
        if gone
        else f"No suspect's trigger fails of a pruning that {at_most(limits)} on {len(bench.select)} images that were "
        "not held out, so nothing was pruned."
    )
    return Outcome(
        choice=Choice(num_pruned=len(gone), num_in_scope=num_channels, reason=reason),
        mask=mask,
        scores=scores,
        statistics=material.clean,
        curve=curve(points, num_channels, len(bench.select), limits),
        triggers=list(triggers),
        triggered=material.triggered,
    )


def _proposed(bench: Workbench, sites: Sequence[Site], one: Suspected) -> Ranking:
    """The channels that score highest, and those that add most to where the trigger leads, standardised by layer."""
    material = looked_at(bench, sites, [one])
    added = {name: standardise(score_C) for name, score_C in raw_scores(material, "logit_contribution").items()}
    by_criterion = masks.rank(channel_scores(material), descending=bench.spec.order == "descending")
    return list(dict.fromkeys([*by_criterion[:NUM_PROPOSED], *masks.rank(added)[:NUM_PROPOSED]]))


def _swept(
    bench: Workbench, sites: Sequence[Site], path: Ranking, counts: Iterable[int], triggers: Sequence[Suspected]
) -> list[SweepPoint]:
    select, each = bench.select, [one.triggers.take([one.which]) for one in triggers]
    return sweep(bench.network, sites, path, sorted(counts), select.pixels_NCHW, select.labels, triggers=each)


def _success(point: SweepPoint) -> float:
    return 1.0 if point.success is None else point.success
