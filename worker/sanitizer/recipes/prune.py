"""Pruning by an activation criterion: profile, score, rank, and choose how far to go.

Shapes: C channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from worker.sanitizer import criteria, masks, selection
from worker.sanitizer.activations import ChannelStatistics, batched, profile
from worker.sanitizer.evaluate import predict, share_of
from worker.sanitizer.exhibits import IMAGES_PER_TRIGGER, Suspected
from worker.sanitizer.network import Site
from worker.sanitizer.recipes.channel_scores import Material, Shown, channel_scores
from worker.sanitizer.recipes.estimate import worst
from worker.sanitizer.recipes.inversion import invert_classes
from worker.sanitizer.recipes.scope import in_scope
from worker.sanitizer.recipes.thresholds import at_most, curve, limits_of
from worker.sanitizer.recipes.workbench import Outcome, Workbench
from worker.sanitizer.repair import snapshot
from worker.sanitizer.report import Choice, CurvePoint, Norm, NormChoice
from worker.sanitizer.selection import Limits
from worker.sanitizer.spec import NEEDS_TRIGGER_SAMPLES, NEEDS_TRIGGERS, AccuracyBudget, FixedFraction, SanitizeSpec
from worker.sanitizer.sweep import grid, sweep
from worker.sanitizer.trigger import Triggers

NUM_SUSPECTED = 1
# The paper's, and the two that it is held against; the first one prunes.
COMPARED_NORMS: tuple[Norm, ...] = ("linf", "l1", "l2")


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
    clean accuracy allows. What ℓ1 and ℓ2 would prune instead is reported beside it.
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
    bench = dataclasses.replace(bench, spec=spec)
    triggers = suspects(bench)
    chosen, rows = _by_norms(bench, triggers)
    masks.silence(bench.network, chosen.mask)
    return dataclasses.replace(chosen, norms=rows)


def _by_norms(bench: Workbench, triggers: Sequence[Suspected]) -> tuple[Outcome, list[NormChoice]]:
    """What ℓ∞ prunes, and what it, ℓ1 and ℓ2 each do by the same rule under the same triggers; nothing is pruned."""
    network, select, kept = bench.network, bench.select, snapshot(bench.network)
    each, outcomes, rows = [one.trigger for one in triggers], [], []
    for norm in COMPARED_NORMS:
        by_norm = dataclasses.replace(bench, spec=dataclasses.replace(bench.spec, criterion=norm))
        outcomes.append(prune_with(by_norm, triggers))
        gone = [~outcomes[-1].mask[name] & ~keep_C for name, keep_C in outcomes[0].mask.items()]
        rows.append(
            NormChoice(
                criterion=norm,
                num_pruned=outcomes[-1].choice.num_pruned,
                num_shared=sum(int(gone_C.sum()) for gone_C in gone),
                accuracy=share_of(predict(network, select.pixels_NCHW) == select.labels),
                synthetic_attack_success=worst(network, each, select),
            )
        )
        network.load(kept)
    return outcomes[0], rows


def suspects(bench: Workbench) -> list[Suspected]:
    """The mask triggers of the classes, those of the smallest masks first, at most `NUM_SUSPECTED`."""
    found = invert_classes(bench)
    sizes = found[0].triggers.size().tolist()
    found.sort(key=lambda one: sizes[one.which])
    return found[:NUM_SUSPECTED]


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
    scores, by_criterion = channel_scores(material)
    num_in_scope = sum(site.num_channels for site in material.sites if site.name in scores)
    return Outcome(
        choice=Choice(num_pruned=0, num_in_scope=num_in_scope, reason=reason),
        scores=scores,
        by_criterion=by_criterion,
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
    stamped = [one.stamped(bench.repair) for one in triggers]
    return [Shown(some.pixels_NCHW, some.labels, one.target) for one, some in zip(triggers, stamped, strict=True)]


def _profile(
    bench: Workbench, shown: Sequence[Shown]
) -> tuple[dict[str, ChannelStatistics], dict[str, ChannelStatistics]]:
    network, pixels_NCHW = bench.network, bench.repair.pixels_NCHW
    batches = [batch for one in shown for batch in batched(one.pixels_NCHW, IMAGES_PER_TRIGGER)]
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
