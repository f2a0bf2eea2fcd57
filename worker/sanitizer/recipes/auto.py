"""The default: judge by synthesised triggers, prune by their ℓ∞ bias, unlearn what is left, verify, and walk back.

Shapes: T triggers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from worker.sanitizer import variety
from worker.sanitizer.evaluate import Z_95_ONE_SIDED
from worker.sanitizer.exhibits import Suspected
from worker.sanitizer.inspection import (
    INVERSION_BATCH,
    PERTURBATION_STEPS,
    Findings,
    inspect,
    num_steps,
    standing_out,
)
from worker.sanitizer.masks import Mask
from worker.sanitizer.recipes.activation_caps import cap_pruned, cap_repaired, carriers
from worker.sanitizer.recipes.answer import status_of
from worker.sanitizer.recipes.cut_off import cut_off
from worker.sanitizer.recipes.prune import prune_with
from worker.sanitizer.recipes.scope import in_scope
from worker.sanitizer.recipes.suspicion import Bounded, Suspicion, bounds, suspect
from worker.sanitizer.recipes.thresholds import limits_of
from worker.sanitizer.recipes.trials import try_targets
from worker.sanitizer.recipes.walk_back import is_finite, right, walk_back, within_budget
from worker.sanitizer.recipes.workbench import NOT_ATTEMPTED, Outcome, Workbench
from worker.sanitizer.repair import Course, Snapshot, chances, snapshot, unlearn
from worker.sanitizer.report import Caps, Repair, SyntheticAttackSuccess
from worker.sanitizer.spec import AccuracyBudget
from worker.sanitizer.trigger import ANYWHERE, Triggers, success, synthesise
from worker.sanitizer.verdict import judge

# Pruning may use this share of the accuracy budget; training must win it back or the result walks back.
PRUNING_SHARE = 0.25
# Gradient steps of a round for each suspected class, at least so many.
UNLEARN_STEPS = 150
LEAST_UNLEARN_STEPS = 300
# Triggers that are random or depend on the image work against a backdoor whose class is not suspected, or that no mask
# stands for. The random ones cost no accuracy on networks of the battery, so they are the heavier where nothing is
# sure, or a large mask stands for a change of the whole image. There a slower descent, softened answers and mirrored
# patchworks keep more of the accuracy; of small masks they leave more alive.
SMALL_MASKS = Course(
    anchor_weight=25.0,
    trigger_weight=6.0,
    random_weight=10.0,
    residual_weight=1.5,
    patchwork=True,
    batch_size=64,
    search_batch=INVERSION_BATCH,
)
LARGE_MASKS = dataclasses.replace(
    SMALL_MASKS,
    anchor_weight=30.0,
    random_weight=20.0,
    temperature=3.0,
    mirrored=True,
    rate_share=0.5,
    length_share=1.5,
)
# Where whole images stand for patchworks there are fewer of them, and where a repair breaks the budget all the way back
# to the suspect it was too hard: the anchor is so many times heavier. Set by hand on two networks of outlined things.
HEAVIER_ANCHOR = 4.0
# Of a search for masks on the network as it is.
FRESH_STEPS = 100
# The estimate at which a repair counts as done.
REPAIRED_AT = 0.10
ESTIMATE_STEPS = 100
# A second round must bring the estimate down to this share, or to a repair: it starts its searches anew, and what the
# first one removed beside the suspects may come back.
ENOUGH_BETTER = 0.5
# Of a round aimed at a class that stands out: the share of the anchor's weight, and q of triggers that lead there. Set
# by hand on one network, of digits with a warp.
AIMED_ANCHOR_SHARE = 0.4
AIMED_WEIGHT = 6.0
_WHOLE_IMAGES = (
    "The network does not know its images when they are pieced together, so whole ones, turned, moved and tinted as "
    "far as it knows them, took their place."
)
_NOT_NEEDED = "No synthesised trigger works after pruning, so no activation was bounded."
_NO_PLACE = (
    "Triggers still work after pruning, and the file has no place for bounds of activations, which an exported program "
    "(.pt2) or ONNX in single precision has."
)


def auto(bench: Workbench) -> Outcome:
    """Judge, prune, repair, verify. A network judged clean is left as it is, unless a fixed pruning was asked for."""
    network, spec = bench.network, bench.spec
    in_scope(network, spec.scope)  # a layer that is not there is refused before any work
    budget = spec.selection if isinstance(spec.selection, AccuracyBudget) else None
    before = snapshot(network)
    bench = dataclasses.replace(bench, vary=variety.choose(network, bench.repair, before, seed=spec.seed))
    with bench.phase("invert", num_steps()) as advance:
        findings = inspect(
            network, bench.repair, bench.select, bench.num_classes, generator=bench.generator, vary=bench.vary,
            advance=advance,
        )  # fmt: skip
    candidates = try_targets(bench, findings, before)
    verdict = judge(findings, candidates, bench.num_classes)
    if isinstance(bench.vary, variety.Recognised):
        verdict = dataclasses.replace(verdict, reason=f"{verdict.reason} {_WHOLE_IMAGES}")
    suspicion = suspect(candidates, verdict)
    outcome = dataclasses.replace(_prune(bench, suspicion), verdict=verdict)
    if verdict.verdict == "clean" and budget is not None:
        network.load(before)
        reason = "The network was judged clean, so nothing was pruned. Ask for a fixed pruning to prune all the same."
        choice = dataclasses.replace(outcome.choice, num_pruned=0, reason=reason)
        repair = Repair(status="not_attempted", reason="The network was judged clean.")
        return dataclasses.replace(outcome, choice=choice, mask={}, repair=repair)
    if verdict.verdict == "clean":
        reason = "The network was judged clean; it was pruned because a fixed pruning was asked for."
        return dataclasses.replace(outcome, repair=Repair(status="not_attempted", reason=reason))
    if not spec.repair:
        repair = dataclasses.replace(NOT_ATTEMPTED, reason="The specification asks for no training.")
        outcome = dataclasses.replace(outcome, repair=repair, estimate=_estimate(bench, outcome, suspicion))
        return _capped(bench, outcome, before, suspicion) if spec.caps and budget is not None else outcome
    return _repair(bench, outcome, before, findings, suspicion, budget)


def _capped(bench: Workbench, outcome: Outcome, before: Snapshot, suspicion: Suspicion) -> Outcome:
    """Bound activations where pruning left triggers that work and the file can carry bounds."""
    assert outcome.estimate is not None
    if outcome.estimate.after <= REPAIRED_AT:
        return dataclasses.replace(outcome, caps=Caps(status="not_needed", reason=_NOT_NEEDED))
    if not carriers(bench.network):
        return dataclasses.replace(outcome, caps=Caps(status="not_possible", reason=_NO_PLACE))
    outcome = cap_pruned(bench, outcome, before)
    if outcome.caps.status != "added":
        return outcome
    return dataclasses.replace(outcome, estimate=_estimate(bench, outcome, suspicion))


def _prune(bench: Workbench, suspicion: Suspicion) -> Outcome:
    """Prune no further than the suspects' success falls: within part of the budget, or by itself surely within it.

    A repair trains on some of the images, so that others choose. Where none follows all choose, and nothing wins back
    what is lost: with its error added, one-sided at 95 %, the loss must keep the budget.
    """
    spec, limits, exhibited = bench.spec, limits_of(bench.spec), _exhibited(bench, suspicion)
    if not isinstance(spec.selection, AccuracyBudget):
        return prune_with(bench, exhibited)
    if not spec.repair:
        bench = dataclasses.replace(bench, select=bench.repair.join(bench.select))
        return cut_off(bench, exhibited, dataclasses.replace(limits, errors=Z_95_ONE_SIDED))
    limits = dataclasses.replace(limits, accuracy_drop=PRUNING_SHARE * limits.accuracy_drop)
    outcome = prune_with(bench, exhibited, sparing=True, limits=limits)
    reason = f"{outcome.choice.reason} A repair follows: pruning may use {PRUNING_SHARE:.0%} of the budget."
    return dataclasses.replace(outcome, choice=dataclasses.replace(outcome.choice, reason=reason))


def _exhibited(bench: Workbench, suspicion: Suspicion) -> list[Suspected]:
    shares = success(bench.network, suspicion.triggers, bench.select.pixels_NCHW, bench.select.labels).tolist()
    return [Suspected(triggers=suspicion.triggers, which=row, success=share) for row, share in enumerate(shares)]


def _repair(
    bench: Workbench,
    outcome: Outcome,
    before: Snapshot,
    findings: Findings,
    suspicion: Suspicion,
    budget: AccuracyBudget | None,
) -> Outcome:
    """Unlearn the suspects, keep as much of the way as the budget allows, and go further rounds where it is not enough.

    It is not enough where the network is surely backdoored and the suspects' triggers still work: elsewhere they may be
    natural features, which no round removes. The next round is against masks that lead anywhere too. Nor is it where a
    class still stands out, whoever was suspected: the next round is aimed at it.
    """
    network, mask = bench.network, outcome.mask
    sure = outcome.verdict is not None and outcome.verdict.verdict == "backdoored"
    course = SMALL_MASKS if suspicion.of_small_masks else LARGE_MASKS
    if isinstance(bench.vary, variety.Recognised):
        course = _heavier(course)
    taught = suspicion.taught
    accuracy_pruned = _select_accuracy(bench)
    start = snapshot(network)
    network.load(before)
    right_before_N = right(bench)
    network.load(start)
    share, course = _first_round(bench, taught, before, course, mask, right_before_N, budget)
    estimate, rounds = _estimate(bench, outcome, suspicion), 1
    if sure and estimate.after > REPAIRED_AT:
        kept = snapshot(network)
        _unlearn_again(bench, findings, taught, before, course, mask)
        if _is_admissible(bench, right_before_N, budget):
            again = _estimate(bench, outcome, suspicion)
            if again.after <= max(REPAIRED_AT, ENOUGH_BETTER * estimate.after):
                estimate, rounds, kept = again, rounds + 1, snapshot(network)
        network.load(kept)
    left = _standing_out(bench, findings)
    if left:
        kept = snapshot(network)
        _unlearn_aimed(bench, taught, before, course, mask, left)
        if _is_admissible(bench, right_before_N, budget):
            still, again = _standing_out(bench, findings), _estimate(bench, outcome, suspicion)
            if len(still) < len(left) and again.after <= max(REPAIRED_AT, estimate.after):
                estimate, rounds, kept, left = again, rounds + 1, snapshot(network), still
        network.load(kept)
    accuracy_after, caps = _select_accuracy(bench), outcome.caps
    if budget is not None and bench.spec.caps and carriers(network):
        caps = cap_repaired(bench, lambda: within_budget(bench, right_before_N, budget))
        if caps.status == "added":
            estimate = _estimate(bench, outcome, suspicion)
    status, reason = status_of(
        estimate.after, REPAIRED_AT, left, is_sure=sure, by_loudness=suspicion.by_loudness, share_kept=share
    )  # fmt: skip
    repair = Repair(
        status=status,
        reason=reason,
        rounds=rounds,
        classes=[target for target in suspicion.targets if target != ANYWHERE],
        share_kept=share,
        accuracy_before=float(right_before_N.double().mean()),
        accuracy_pruned=accuracy_pruned,
        accuracy_after=accuracy_after,
    )
    return dataclasses.replace(outcome, repair=repair, estimate=estimate, caps=caps)


def _first_round(
    bench: Workbench,
    taught: Bounded,
    before: Snapshot,
    course: Course,
    mask: Mask,
    right_before_N: Tensor,
    budget: AccuracyBudget | None,
) -> tuple[float, Course]:
    """Unlearn the suspects, and once more with a heavier anchor if nothing of that fits the budget.

    Returns:
        The share of the way that fits, and the course that led there.
    """
    steps = max(LEAST_UNLEARN_STEPS, UNLEARN_STEPS * len({*taught.targets} - {ANYWHERE}))
    start = snapshot(bench.network)

    def share_of(course: Course) -> float:
        _unlearn(bench, _doubled(bench, taught), before, course, mask, steps, phase="repair")
        return walk_back(bench, start, snapshot(bench.network), right_before_N, budget)

    share = share_of(course)
    return (share, course) if share else (share_of(_heavier(course)), _heavier(course))


def _heavier(course: Course) -> Course:
    return dataclasses.replace(course, anchor_weight=HEAVIER_ANCHOR * course.anchor_weight)


def _is_admissible(bench: Workbench, right_before_N: Tensor, budget: AccuracyBudget | None) -> bool:
    return is_finite(snapshot(bench.network)) and within_budget(bench, right_before_N, budget)


def _unlearn_again(
    bench: Workbench, findings: Findings, taught: Bounded, before: Snapshot, course: Course, mask: Mask
) -> None:
    """Unlearn the suspects, and masks that lead anywhere: the suspect's smallest, and one of the network as it is."""
    found = _invert_again(bench, [ANYWHERE]).join(findings.anywhere)
    again = _doubled(bench, taught).join(found, bounds(found))
    # The suspects' own triggers keep the weight that they had.
    own = float(chances(again.triggers)[: -len(found)].sum())
    weight = course.trigger_weight / own
    course = dataclasses.replace(course, trigger_weight=weight)
    _unlearn(bench, again, before, course, mask, LEAST_UNLEARN_STEPS, phase="repair_again")


def _unlearn_aimed(
    bench: Workbench, taught: Bounded, before: Snapshot, course: Course, mask: Mask, targets: Sequence[int]
) -> None:
    """Unlearn triggers that depend on the image and lead to these classes, beside the suspects' masks."""
    anchor_weight = AIMED_ANCHOR_SHARE * course.anchor_weight
    course = dataclasses.replace(course, anchor_weight=anchor_weight, residual_weight=AIMED_WEIGHT)
    _unlearn(bench, taught, before, course, mask, LEAST_UNLEARN_STEPS, phase="repair_again", residual=targets)


def _unlearn(
    bench: Workbench,
    taught: Bounded,
    anchor: Snapshot,
    course: Course,
    mask: Mask,
    steps: int,
    *,
    phase: str,
    residual: Sequence[int] = (),
) -> None:
    """Unlearn the suspects from where the network is, and triggers that depend on the image.

    These lead to classes that were asked for, or anywhere and to the first of the suspects.
    """
    leads = residual or list(dict.fromkeys([ANYWHERE, *taught.targets]))
    steps = round(course.length_share * steps)
    with bench.phase(phase, steps) as advance:
        unlearn(
            bench.network, bench.repair, taught.triggers, taught.bounds_T, course, anchor=anchor, steps=steps,
            generator=bench.generator, mask=mask, residual_targets=leads, vary=bench.vary, advance=advance,
        )  # fmt: skip


def _doubled(bench: Workbench, taught: Bounded) -> Bounded:
    """With a second mask for each, drawn anew: the first may sit in a corner that the network soon defends."""
    return taught.join(_invert_again(bench, taught.targets), taught.bounds_T)


def _invert_again(bench: Workbench, targets: Sequence[int]) -> Triggers:
    """Masks on the network as it is."""
    with bench.phase("invert_again", FRESH_STEPS) as advance:
        return synthesise(
            bench.network, bench.repair.pixels_NCHW, bench.repair.labels, targets, family="mask", steps=FRESH_STEPS,
            batch_size=INVERSION_BATCH, generator=bench.generator, advance=advance,
        )  # fmt: skip


def _standing_out(bench: Workbench, findings: Findings) -> list[int]:
    with bench.phase("estimate", PERTURBATION_STEPS) as advance:
        return standing_out(
            bench.network, bench.repair, bench.select, findings.classes, generator=bench.generator, advance=advance
        )


def _estimate(bench: Workbench, outcome: Outcome, suspicion: Suspicion) -> SyntheticAttackSuccess:
    """The largest success of the suspect's triggers, and of others within the suspicion's bounds, searched now.

    Half of these begin where the suspect's were and never leave the bound; half begin anew and are cut to it.
    """
    network, select = bench.network, bench.select
    found = suspicion.triggers

    def search(start: Triggers | None) -> Triggers:
        return synthesise(
            network, bench.repair.pixels_NCHW, bench.repair.labels, suspicion.targets, family="mask",
            steps=ESTIMATE_STEPS, batch_size=INVERSION_BATCH, start=start,
            max_size_T=None if start is None else suspicion.bounds_T, generator=bench.generator, advance=advance,
        )  # fmt: skip

    with bench.phase("estimate", 2 * ESTIMATE_STEPS) as advance:
        anew, near = search(None).bounded(suspicion.bounds_T), search(found)
        everything = found.join(anew).join(near)
        after = float(success(network, everything, select.pixels_NCHW, select.labels).amax())
    before = max(one.success for one in outcome.triggers if one.success is not None)
    return SyntheticAttackSuccess(before=before, after=after, num_triggers=len(everything))


def _select_accuracy(bench: Workbench) -> float:
    return float(right(bench).double().mean())
