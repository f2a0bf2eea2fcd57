"""The default: judge by synthesised triggers, prune by their ℓ∞ bias, unlearn what is left, verify, and walk back.

Shapes: T triggers.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor

from worker.sanitizer.evaluate import Z_95_ONE_SIDED
from worker.sanitizer.exhibits import Suspected
from worker.sanitizer.inspection import INVERSION_BATCH, PERTURBATION_STEPS, Findings, standing_out
from worker.sanitizer.recipes.activation_caps import cap_pruned, cap_repaired, carriers
from worker.sanitizer.recipes.answer import status_of
from worker.sanitizer.recipes.cut_off import cut_off
from worker.sanitizer.recipes.estimate import estimated
from worker.sanitizer.recipes.judging import Judged, judged
from worker.sanitizer.recipes.prune import profiled, prune_with
from worker.sanitizer.recipes.rounds import course_for, first_round, unlearn_again, unlearn_aimed
from worker.sanitizer.recipes.suspicion import Suspicion
from worker.sanitizer.recipes.thresholds import limits_of
from worker.sanitizer.recipes.walk_back import is_finite, right, within_budget
from worker.sanitizer.recipes.workbench import NOT_ATTEMPTED, Outcome, Workbench
from worker.sanitizer.repair import Snapshot, snapshot
from worker.sanitizer.report import Caps, Repair, SyntheticAttackSuccess
from worker.sanitizer.spec import AccuracyBudget
from worker.sanitizer.trigger import ANYWHERE, Triggers, synthesise

# Pruning may use this share of the accuracy budget; training must win it back or the result walks back.
PRUNING_SHARE = 0.25
# The estimate at which a repair counts as done.
REPAIRED_AT = 0.10
ESTIMATE_STEPS = 100
# A second round must bring the estimate down to this share, or to a repair: it starts its searches anew, and what the
# first one removed beside the suspects may come back.
ENOUGH_BETTER = 0.5
_NOT_NEEDED = "No synthesised trigger works after pruning, so no activation was bounded."
_NO_PLACE = (
    "Triggers still work after pruning, and the file has no place for bounds of activations, which an exported program "
    "(.pt2) or ONNX in single precision has."
)


def auto(bench: Workbench) -> Outcome:
    """Judge, prune, repair, verify. A network judged clean is left as it is, unless a fixed pruning was asked for."""
    known = judged(bench)
    bench, spec, before, verdict = known.bench, bench.spec, known.before, known.verdict
    budget = spec.selection if isinstance(spec.selection, AccuracyBudget) else None
    outcome = dataclasses.replace(_prune(bench, known.exhibited()), verdict=verdict)
    if verdict.verdict == "clean" and budget is not None:
        bench.network.load(before)
        reason = "The network was judged clean, so nothing was pruned. Ask for a fixed pruning to prune all the same."
        choice = dataclasses.replace(outcome.choice, num_pruned=0, reason=reason)
        repair = Repair(status="not_attempted", reason="The network was judged clean.")
        return dataclasses.replace(outcome, choice=choice, mask={}, repair=repair)
    if verdict.verdict == "clean":
        reason = "The network was judged clean; it was pruned because a fixed pruning was asked for."
        return dataclasses.replace(outcome, repair=Repair(status="not_attempted", reason=reason))
    if not spec.repair:
        repair = dataclasses.replace(NOT_ATTEMPTED, reason="The specification asks for no training.")
        outcome = dataclasses.replace(outcome, repair=repair, estimate=_estimate(bench, outcome, known.suspicion))
        return _capped(bench, outcome, before, known.suspicion) if spec.caps and budget is not None else outcome
    return _repair(known, outcome, budget)


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


def _prune(bench: Workbench, exhibited: list[Suspected]) -> Outcome:
    """Prune no further than the suspects' success falls: within part of the budget, or by itself surely within it.

    A repair trains on some of the images, so that others choose. Where none follows all choose, and nothing wins back
    what is lost: with its error added, one-sided at 95 %, the loss must keep the budget.
    """
    spec, limits = bench.spec, limits_of(bench.spec)
    if not spec.prune:
        return profiled(bench, exhibited, "The specification asks for no pruning.")
    if not isinstance(spec.selection, AccuracyBudget):
        return prune_with(bench, exhibited)
    if not spec.repair:
        bench = dataclasses.replace(bench, select=bench.repair.join(bench.select))
        return cut_off(bench, exhibited, dataclasses.replace(limits, errors=Z_95_ONE_SIDED))
    limits = dataclasses.replace(limits, accuracy_drop=PRUNING_SHARE * limits.accuracy_drop)
    outcome = prune_with(bench, exhibited, sparing=True, limits=limits)
    reason = f"{outcome.choice.reason} A repair follows: pruning may use {PRUNING_SHARE:.0%} of the budget."
    return dataclasses.replace(outcome, choice=dataclasses.replace(outcome.choice, reason=reason))


def _repair(known: Judged, outcome: Outcome, budget: AccuracyBudget | None) -> Outcome:
    """Unlearn the suspects, keep as much of the way as the budget allows, and go further rounds where it is not enough.

    It is not enough where the network is surely backdoored and the suspects' triggers still work: elsewhere they may be
    natural features, which no round removes. The next round is against masks that lead anywhere too. Nor is it where a
    class still stands out, whoever was suspected: the next round is aimed at it.
    """
    bench, before, findings, suspicion = known.bench, known.before, known.findings, known.suspicion
    network, mask, attempts_left = bench.network, outcome.mask, bench.spec.max_rounds - 1
    sure = known.verdict.verdict == "backdoored"
    course = course_for(bench, suspicion)
    taught = suspicion.taught
    accuracy_pruned = _select_accuracy(bench)
    pruned = snapshot(network)
    network.load(before)
    right_before_N = right(bench)
    network.load(pruned)
    first = first_round(bench, taught, before, pruned, course, mask, right_before_N, budget)
    share, course = first.share_kept, first.course
    estimate, rounds = _estimate(bench, outcome, suspicion), 1
    if sure and estimate.after > REPAIRED_AT and attempts_left:
        attempts_left -= 1
        kept = snapshot(network)
        unlearn_again(bench, findings, taught, before, course, mask)
        if _is_admissible(bench, right_before_N, budget):
            again = _estimate(bench, outcome, suspicion)
            if again.after <= max(REPAIRED_AT, ENOUGH_BETTER * estimate.after):
                estimate, rounds, kept = again, rounds + 1, snapshot(network)
        network.load(kept)
    left = _standing_out(bench, findings)
    if left and attempts_left:
        kept = snapshot(network)
        unlearn_aimed(bench, taught, before, course, mask, left)
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
        reason=f"{reason}{first.reason}",
        rounds=rounds,
        classes=[target for target in suspicion.targets if target != ANYWHERE],
        share_kept=share,
        accuracy_before=float(right_before_N.double().mean()),
        accuracy_pruned=accuracy_pruned,
        accuracy_after=accuracy_after,
    )
    return dataclasses.replace(outcome, repair=repair, estimate=estimate, caps=caps)


def _is_admissible(bench: Workbench, right_before_N: Tensor, budget: AccuracyBudget | None) -> bool:
    return is_finite(bench.network.parameters()) and within_budget(bench, right_before_N, budget)


def _standing_out(bench: Workbench, findings: Findings) -> list[int]:
    with bench.phase("estimate", PERTURBATION_STEPS) as advance:
        return standing_out(
            bench.network, bench.repair, bench.select, findings.classes, generator=bench.generator, advance=advance
        )


def _estimate(bench: Workbench, outcome: Outcome, suspicion: Suspicion) -> SyntheticAttackSuccess:
    """The largest success of the suspect's triggers, and of others within the suspicion's bounds, searched now.

    Half of these begin where the suspect's were and never leave the bound; half begin anew and are cut to it.
    """
    network, found = bench.network, suspicion.triggers

    def search(start: Triggers | None) -> Triggers:
        return synthesise(
            network, bench.repair.pixels_NCHW, bench.repair.labels, suspicion.targets, family="mask",
            steps=ESTIMATE_STEPS, batch_size=INVERSION_BATCH, start=start,
            max_size_T=None if start is None else suspicion.bounds_T, generator=bench.generator, advance=advance,
        )  # fmt: skip

    with bench.phase("estimate", 2 * ESTIMATE_STEPS) as advance:
        anew, near = search(None).bounded(suspicion.bounds_T), search(found)
        return estimated(network, outcome.triggers, [found, anew, near], bench.select)


def _select_accuracy(bench: Workbench) -> float:
    return float(right(bench).double().mean())
