"""The default: judge by synthesised triggers, prune by their ℓ∞ bias, unlearn what is left, verify, and walk back.

Shapes: K classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from worker.sanitizer import masks
from worker.sanitizer.evaluate import accuracy
from worker.sanitizer.exhibits import Suspected
from worker.sanitizer.masks import Mask
from worker.sanitizer.recipes.prune import prune_with
from worker.sanitizer.recipes.workbench import NOT_ATTEMPTED, Outcome, Workbench
from worker.sanitizer.repair import (
    GROWTH,
    REFEREE_STEPS,
    Snapshot,
    interpolate,
    referee,
    snapshot,
    unlearn,
)
from worker.sanitizer.report import Repair, SyntheticAttackSuccess, Verdict
from worker.sanitizer.selection import TOLERANCE
from worker.sanitizer.spec import AccuracyBudget
from worker.sanitizer.trigger import Triggers, success, synthesise
from worker.sanitizer.verdict import INVERSION_BATCH, MASK_STEPS, Findings, inspect, judge, num_steps

# Pruning may use this share of the accuracy budget; training must win it back or the result walks back.
PRUNING_SHARE = 0.5
# Per suspected class and round.
UNLEARN_STEPS = 150
UNLEARN_RATE = 1e-3
MAX_ROUNDS = 1
MAX_NAMED = 2
# The estimate at which a round counts as done, and the one above which nothing was repaired.
REPAIRED_AT = 0.15
NOT_REPAIRED_AT = 0.5
# Shares of the way from the suspect to the repaired network that are tried, until the budget holds.
WALK_BACK = (1.0, 0.85, 0.7, 0.55, 0.4)


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What repair works against: classes, their triggers on the suspect, and the bounds of their masks' sizes."""

    classes: list[int]
    triggers: list[Suspected]
    max_sizes: list[float]


def auto(bench: Workbench) -> Outcome:
    """Judge, prune, repair, verify. A network judged clean is left as it is, unless a fixed pruning was asked for."""
    network, spec = bench.network, bench.spec
    asked, budget = spec, None
    if isinstance(spec.selection, AccuracyBudget):
        budget = spec.selection.max_accuracy_drop
        selection = dataclasses.replace(spec.selection, max_accuracy_drop=PRUNING_SHARE * budget)
        asked = dataclasses.replace(spec, selection=selection)
    with bench.phase("forget", REFEREE_STEPS) as advance:
        forgetful = referee(network, bench.repair, generator=bench.generator, advance=advance)
    with bench.phase("invert", num_steps()) as advance:
        findings = inspect(
            network, forgetful, bench.repair, bench.select, bench.num_classes,
            generator=bench.generator, advance=advance,
        )  # fmt: skip
    verdict = judge(findings, bench.num_classes)
    suspicion = _suspicion(bench, findings, verdict)
    before = snapshot(network)
    pruned = prune_with(dataclasses.replace(bench, spec=asked), suspicion.triggers)
    outcome = dataclasses.replace(pruned, verdict=verdict)
    if verdict.verdict == "clean" and budget is not None:
        network.load(before)
        reason = "The network was judged clean, so nothing was pruned. Ask for a fixed pruning to prune all the same."
        choice = dataclasses.replace(outcome.choice, num_pruned=0, reason=reason)
        repair = Repair(status="not_attempted", reason="The network was judged clean.")
        return dataclasses.replace(outcome, choice=choice, mask={}, repair=repair)
    if not spec.repair:
        repair = dataclasses.replace(NOT_ATTEMPTED, reason="The specification asks for pruning alone.")
        return dataclasses.replace(outcome, repair=repair, estimate=_estimate(bench, before, suspicion))
    return _repair(bench, outcome, before, suspicion, budget)


def _suspicion(bench: Workbench, findings: Findings, verdict: Verdict) -> Suspicion:
    # A class on which both statistics agree needs no company but the leader's: each one costs clean accuracy.
    rows = findings.candidates()
    if verdict.verdict == "backdoored":
        named = [findings.classes.index(target) for target in verdict.target_classes]
        rows = list(dict.fromkeys([rows[0], *named]))[:MAX_NAMED]
    shares = success(bench.network, findings.triggers.take(rows), bench.select.pixels_NCHW, bench.select.labels)
    triggers = [
        Suspected(triggers=findings.triggers, which=row, success=float(share))
        for row, share in zip(rows, shares.tolist(), strict=True)
    ]
    max_sizes = [GROWTH * size for size in findings.size[rows].tolist()]
    return Suspicion([findings.classes[row] for row in rows], triggers, max_sizes)


def _repair(
    bench: Workbench, outcome: Outcome, before: Snapshot, suspicion: Suspicion, budget: float | None
) -> Outcome:
    """Rounds of unlearning until no bounded trigger works any more, then as much of the way as the budget allows."""
    network, mask = bench.network, outcome.mask
    seen_before = _select_accuracy_of(bench, before)
    seen_pruned = _select_accuracy(bench)
    rounds = 0
    steps = UNLEARN_STEPS * len(suspicion.classes)
    with bench.phase("repair", MAX_ROUNDS * steps) as advance:
        while True:
            unlearn(
                network,
                bench.repair,
                suspicion.classes,
                suspicion.max_sizes,
                radius=None,
                steps=steps,
                rate=UNLEARN_RATE,
                generator=bench.generator,
                mask=mask,
                advance=advance,
            )
            rounds += 1
            estimate = _estimate(bench, before, suspicion)
            if estimate.after <= REPAIRED_AT or rounds == MAX_ROUNDS:
                break
    share = 1.0
    if budget is not None:
        share = _walk_back(bench, before, mask, seen_before - budget)
        estimate = _estimate(bench, before, suspicion) if share < 1.0 else estimate
    if estimate.after <= REPAIRED_AT:
        status, reason = "repaired", "No synthesised trigger of the suspect's size works any more."
    elif estimate.after <= NOT_REPAIRED_AT:
        status, reason = "partly_repaired", "Synthesised triggers work less often, and still too often."
    else:
        status, reason = "not_repaired", "Synthesised triggers still work on most images."
    repair = Repair(
        status=status,  # type: ignore[arg-type]
        reason=reason,
        rounds=rounds,
        classes=suspicion.classes,
        share_kept=share,
        accuracy_before=seen_before,
        accuracy_pruned=seen_pruned,
        accuracy_after=_select_accuracy(bench),
    )
    return dataclasses.replace(outcome, repair=repair, estimate=estimate)


def _walk_back(bench: Workbench, before: Snapshot, mask: Mask, floor: float) -> float:
    """Go back towards the suspect until the accuracy is admissible; pruned channels stay silent on the way."""
    network = bench.network
    repaired = snapshot(network)
    network.load(before)
    masks.silence(network, mask)
    start = snapshot(network)
    for share in WALK_BACK:
        interpolate(network, start, repaired, share)
        if _select_accuracy(bench) >= floor - TOLERANCE:
            return share
    return WALK_BACK[-1]


def _estimate(bench: Workbench, before: Snapshot, suspicion: Suspicion) -> SyntheticAttackSuccess:
    """The largest success of triggers as small as the suspect's: those found on it, and those found again now."""
    network = bench.network
    again: Triggers = synthesise(
        network, bench.repair.pixels_NCHW, bench.repair.labels, suspicion.classes, family="mask", steps=MASK_STEPS,
        batch_size=INVERSION_BATCH, generator=bench.generator,
    ).bounded(torch.tensor(suspicion.max_sizes))  # fmt: skip
    found = [one.triggers.take([one.which]) for one in suspicion.triggers]
    after = _largest(bench, [*found, again])
    now = snapshot(network)
    network.load(before)
    largest_before = _largest(bench, found)
    network.load(now)
    return SyntheticAttackSuccess(before=largest_before, after=after, num_triggers=len(found) + len(again))


def _largest(bench: Workbench, found: Sequence[Triggers]) -> float:
    select = bench.select
    return max(float(success(bench.network, triggers, select.pixels_NCHW, select.labels).amax()) for triggers in found)


def _select_accuracy(bench: Workbench) -> float:
    return accuracy(bench.network, bench.select.pixels_NCHW, bench.select.labels)


def _select_accuracy_of(bench: Workbench, tensors: Snapshot) -> float:
    now = snapshot(bench.network)
    bench.network.load(tensors)
    seen = _select_accuracy(bench)
    bench.network.load(now)
    return seen
