"""Pruning by an activation criterion: profile, score, rank, and choose how far to go.

Shapes: C channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from worker.sanitizer import criteria, masks, selection
from worker.sanitizer.activations import ChannelStatistics, batched, profile
from worker.sanitizer.exhibits import Suspected
from worker.sanitizer.network import Site
from worker.sanitizer.recipes.channel_scores import Material, Shown, channel_scores
from worker.sanitizer.recipes.scope import in_scope
from worker.sanitizer.recipes.thresholds import at_most, curve, limits_of
from worker.sanitizer.recipes.workbench import Outcome, Workbench
from worker.sanitizer.report import Choice, CurvePoint
from worker.sanitizer.selection import Limits
from worker.sanitizer.spec import NEEDS_TRIGGER_SAMPLES, NEEDS_TRIGGERS, AccuracyBudget, FixedFraction, SanitizeSpec
from worker.sanitizer.sweep import grid, sweep
from worker.sanitizer.trigger import Triggers, success, synthesise

SYNTHESIS_STEPS = 300
SYNTHESIS_BATCH = 16
# Classes that are inverted side by side; more would cost memory and save no time.
CLASSES_AT_ONCE = 20
NUM_SUSPECTED = 1
PROFILE_IMAGES_PER_TRIGGER = 256


def prune(bench: Workbench) -> Outcome:
    """Prune as the specification says, and nothing else."""
    spec = bench.spec
    in_scope(bench.network, spec.scope)  # a layer that is not there is refused before any work
    wanted = spec.inputs == "clean" and any(name in NEEDS_TRIGGERS for name in spec.criteria)
    return prune_with(bench, suspects(bench) if wanted or spec.inputs.startswith("synthetic") else [])


def paper(bench: Workbench) -> Outcome:
    """The rule of arXiv 2002.12162 as it is read here, whatever else the specification says.

    A trigger is synthesised for each class, the class of the smallest mask is suspected, and the channels of the last
    convolution are pruned in decreasing order of the ℓ∞ norm of their activation maps under that trigger, while
    clean accuracy allows.
    """
    selected = bench.spec.selection
    spec = dataclasses.replace(
        bench.spec,
        criterion="linf",
        aggregate="mean",
        inputs="synthetic",
        scope="last_conv",
        order="descending",
        selection=selected if isinstance(selected, AccuracyBudget) else AccuracyBudget(),
    )
    return prune(dataclasses.replace(bench, spec=spec))


def suspects(bench: Workbench) -> list[Suspected]:
    """A mask trigger for every class, those of the smallest masks first, at most `NUM_SUSPECTED`."""
    network, images, everything = bench.network, bench.repair, range(bench.num_classes)
    chunks = [everything[start : start + CLASSES_AT_ONCE] for start in range(0, len(everything), CLASSES_AT_ONCE)]
    found = []
    with bench.phase("synthesise", SYNTHESIS_STEPS * len(chunks)) as advance:
        for classes in chunks:
            triggers = synthesise(
                network,
                images.pixels_NCHW,
                images.labels,
                classes,
                family="mask",
                steps=SYNTHESIS_STEPS,
                batch_size=SYNTHESIS_BATCH,
                generator=bench.generator,
                advance=advance,
            )
            shares = success(network, triggers, bench.select.pixels_NCHW, bench.select.labels).tolist()
            sizes = triggers.size().tolist()
            found += [
                (sizes[row], Suspected(triggers=triggers, which=row, success=shares[row]))
                for row in range(len(triggers))
            ]
    found.sort(key=lambda pair: pair[0])
    return [suspected for _, suspected in found[:NUM_SUSPECTED]]


def prune_with(
    bench: Workbench, triggers: Sequence[Suspected], *, sparing: bool = False, limits: Limits | None = None
) -> Outcome:
    """Score, choose and silence; `triggers` stand for the trigger where the inputs are synthetic.

    Within an accuracy budget the strongest pruning is chosen; a `sparing` one goes no further than the triggers'
    success falls. `limits` stand for that budget's.

    Raises:
        NetworkRefusedError: `spec.scope` names a layer that is not there.
    """
    network, spec = bench.network, bench.spec
    scored = profiled(bench, triggers, "")
    sites = [site for site in network.sites if site.name in scored.scores]
    each = [one.trigger for one in triggers]
    count, reason, points = _choose(bench, sites, scored.scores, each, sparing, limits or limits_of(spec))
    mask = masks.from_ranking(sites, masks.rank(scored.scores, descending=spec.order == "descending"), count)
    masks.silence(network, mask)
    choice = dataclasses.replace(scored.choice, num_pruned=count, reason=reason)
    return dataclasses.replace(scored, choice=choice, mask=mask, curve=points)


def profiled(bench: Workbench, triggers: Sequence[Suspected], reason: str) -> Outcome:
    """Profile and score, and silence nothing, for this reason.

    Raises:
        NetworkRefusedError: `spec.scope` names a layer that is not there.
    """
    material = looked_at(bench, in_scope(bench.network, bench.spec.scope), triggers)
    scores = channel_scores(material)
    num_in_scope = sum(site.num_channels for site in material.sites if site.name in scores)
    return Outcome(
        choice=Choice(num_pruned=0, num_in_scope=num_in_scope, reason=reason),
        scores=scores,
        statistics=material.clean,
        triggers=list(triggers),
        triggered=material.triggered,
    )


def looked_at(bench: Workbench, sites: Sequence[Site], triggers: Sequence[Suspected]) -> Material:
    """What the criteria of the specification look at: activations on clean images, and on images under the triggers."""
    shown = _shown(bench, triggers)
    clean, triggered = _profile(bench, [] if bench.spec.inputs == "clean" else shown)
    return Material(bench=bench, sites=sites, clean=clean, triggered=triggered, shown=shown)


def _shown(bench: Workbench, triggers: Sequence[Suspected]) -> list[Shown]:
    """The client's trigger samples where they guide, else some images under each synthesised trigger."""
    if bench.spec.inputs in NEEDS_TRIGGER_SAMPLES:
        assert bench.guide is not None
        return [Shown(bench.guide.pixels_NCHW, bench.guide.labels_N, None)]
    # Evenly spaced, because images often come sorted by class.
    number = min(PROFILE_IMAGES_PER_TRIGGER, len(bench.repair))
    some = bench.repair.take(torch.arange(number) * len(bench.repair) // number)
    seen_NCHW = some.pixels_NCHW.to(bench.network.device)
    return [Shown(one.triggers.stamp(seen_NCHW, one.which), some.labels, one.target) for one in triggers]


def _profile(
    bench: Workbench, shown: Sequence[Shown]
) -> tuple[dict[str, ChannelStatistics], dict[str, ChannelStatistics]]:
    network, pixels_NCHW = bench.network, bench.repair.pixels_NCHW
    batches = [batch for one in shown for batch in batched(one.pixels_NCHW, PROFILE_IMAGES_PER_TRIGGER)]
    with bench.phase("profile", len(pixels_NCHW) + sum(len(batch) for batch in batches)) as advance:
        clean = profile(network, batched(pixels_NCHW), network.sites, advance=advance)
        triggered = profile(network, batches, network.sites, advance=advance) if batches else {}
    return clean, triggered


def _choose(
    bench: Workbench,
    sites: Sequence[Site],
    scores: criteria.Scores,
    triggers: Sequence[Triggers],
    sparing: bool,
    limits: Limits,
) -> tuple[int, str, list[CurvePoint]]:
    spec: SanitizeSpec = bench.spec
    descending = spec.order == "descending"
    ranking = masks.rank(scores, descending=descending)
    num_channels = sum(site.num_channels for site in sites)
    if isinstance(spec.selection, FixedFraction):
        count = min(round(spec.selection.fraction * num_channels), len(ranking))
        return count, f"A fixed {spec.selection.fraction:.1%} of the channels in scope was asked for.", []
    if not isinstance(spec.selection, AccuracyBudget):
        count = min(selection.beyond_deviations(scores, spec.selection.k, descending=descending), len(ranking))
        return count, f"The channels over {spec.selection.k:g} robust deviations beyond their layer's median.", []
    budget = spec.selection
    counts = grid(num_channels, num_points=budget.num_points, max_fraction=budget.max_fraction)
    with bench.phase("sweep", len(counts)) as advance:
        select = bench.select
        points = sweep(
            bench.network, sites, ranking, counts, select.pixels_NCHW, select.labels, triggers=triggers, advance=advance
        )
    chosen = (selection.least_success_within if sparing else selection.strongest_within)(points, limits)
    stated = curve(points, num_channels, len(select), limits)
    rule = "pruning under which the synthesised triggers work least" if sparing else "strongest pruning"
    reason = (
        f"The {rule} of the sweep that {at_most(limits)} on {len(select)} images that were not held out "
        f"({points[0].accuracy:.1%} before, {chosen.accuracy:.1%} after)."
    )
    return chosen.count, reason, stated
