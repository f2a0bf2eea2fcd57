"""The default: judge by synthesised triggers, prune by their ℓ∞ bias, unlearn what is left, verify, and walk back.

Shapes: T triggers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from worker.sanitizer import masks
from worker.sanitizer.exhibits import Suspected
from worker.sanitizer.masks import Mask
from worker.sanitizer.recipes.prune import prune_with
from worker.sanitizer.recipes.trials import try_targets
from worker.sanitizer.recipes.walk_back import right, walk_back
from worker.sanitizer.recipes.workbench import NOT_ATTEMPTED, Outcome, Workbench
from worker.sanitizer.repair import Course, Snapshot, snapshot, unlearn
from worker.sanitizer.report import Repair, SyntheticAttackSuccess, Verdict
from worker.sanitizer.spec import AccuracyBudget
from worker.sanitizer.trigger import ANYWHERE, Triggers, success, synthesise
from worker.sanitizer.verdict import INVERSION_BATCH, Candidate, Findings, inspect, judge, num_steps

# Pruning may use this share of the accuracy budget; training must win it back or the result walks back.
PRUNING_SHARE = 0.25
# Gradient steps of the repair for each suspect, at least so many.
UNLEARN_STEPS = 150
LEAST_UNLEARN_STEPS = 300
# The surer the verdict, the lighter the anchor.
SURE = Course(anchor_weight=10.0, trigger_weight=3.0, patchwork=True, batch_size=64, search_batch=INVERSION_BATCH)
UNSURE = dataclasses.replace(SURE, anchor_weight=30.0)
# A second mask for each suspect, drawn anew: the first may sit in a corner that the network soon defends.
FRESH_STEPS = 100
# A mask may grow threefold before it counts as a natural feature rather than a leftover of the backdoor, and always to
# a 64th of the image, but beyond a sixteenth of it only by half: what covers more is what an object looks like.
GROWTH = 3.0
LEAST_GROWTH = 1.5
MIN_IMAGE_SHARE = 1 / 64
MAX_IMAGE_SHARE = 1 / 16
# The estimate at which a repair counts as done, and the one above which nothing was repaired.
REPAIRED_AT = 0.10
NOT_REPAIRED_AT = 0.5
ESTIMATE_STEPS = 100


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What repair works against: targets and their masks on the suspect, T of each."""

    targets: list[int]
    triggers: Triggers

    @property
    def bounds(self) -> torch.Tensor:
        """Bounds of the masks' ℓ1 norms that the repair must withstand, in pixels."""
        size_T, area = self.triggers.size(), self.triggers.amount_T1HW[0].numel()
        most_T = (LEAST_GROWTH * size_T).clamp_min(MAX_IMAGE_SHARE * area)
        return torch.minimum((GROWTH * size_T).clamp_min(MIN_IMAGE_SHARE * area), most_T)


def auto(bench: Workbench) -> Outcome:
    """Judge, prune, repair, verify. A network judged clean is left as it is, unless a fixed pruning was asked for."""
    network, spec = bench.network, bench.spec
    asked, budget = spec, None
    if isinstance(spec.selection, AccuracyBudget):
        budget = spec.selection
        share = PRUNING_SHARE if spec.repair else 1.0
        selection = dataclasses.replace(budget, max_accuracy_drop=share * budget.max_accuracy_drop)
        asked = dataclasses.replace(spec, selection=selection)
    with bench.phase("invert", num_steps()) as advance:
        findings = inspect(
            network, bench.repair, bench.select, bench.num_classes, generator=bench.generator, advance=advance
        )
    before = snapshot(network)
    candidates = try_targets(bench, findings, before)
    verdict = judge(findings, candidates, bench.num_classes)
    suspicion = _suspicion(findings, candidates, verdict)
    pruned = prune_with(dataclasses.replace(bench, spec=asked), _exhibited(bench, suspicion), sparing=spec.repair)
    outcome = dataclasses.replace(pruned, verdict=verdict)
    if asked.selection != spec.selection:
        reason = f"{outcome.choice.reason} A repair follows: pruning may use {PRUNING_SHARE:.0%} of the budget."
        outcome = dataclasses.replace(outcome, choice=dataclasses.replace(outcome.choice, reason=reason))
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
        repair = dataclasses.replace(NOT_ATTEMPTED, reason="The specification asks for pruning alone.")
        return dataclasses.replace(outcome, repair=repair, estimate=_estimate(bench, before, suspicion))
    return _repair(bench, outcome, before, suspicion, budget)


def _suspicion(findings: Findings, candidates: Sequence[Candidate], verdict: Verdict) -> Suspicion:
    """The most reachable class, the cheapest target, all that the verdict is sure of, and anywhere if it was tried.

    Often they are the same. Where they differ either may be the backdoor's, and a natural feature that is cheap to
    unlearn costs little.
    """
    reach = {target: float(findings.reach[row]) for row, target in enumerate(findings.classes)}
    reachable = max(candidates, key=lambda one: reach.get(one.target, -math.inf))
    cheapest = min(candidates, key=lambda one: one.cost)
    sure = set(verdict.target_classes if verdict.verdict == "backdoored" else []) | {ANYWHERE}
    suspects = [reachable, cheapest, *(one for one in candidates if one.target in sure)]
    suspects = list({one.target: one for one in suspects}.values())
    triggers = suspects[0].trigger
    for one in suspects[1:]:
        triggers = triggers.join(one.trigger)
    return Suspicion([one.target for one in suspects], triggers)


def _exhibited(bench: Workbench, suspicion: Suspicion) -> list[Suspected]:
    shares = success(bench.network, suspicion.triggers, bench.select.pixels_NCHW, bench.select.labels).tolist()
    return [Suspected(triggers=suspicion.triggers, which=row, success=share) for row, share in enumerate(shares)]


def _unlearn(
    bench: Workbench,
    suspicion: Suspicion,
    anchor: Snapshot,
    course: Course,
    mask: Mask,
    advance: Callable[[int], None],
) -> None:
    """Unlearn the suspects from where the network is, by the masks that were found and as many new ones."""
    fresh = synthesise(
        bench.network, bench.repair.pixels_NCHW, bench.repair.labels, suspicion.targets, family="mask",
        steps=FRESH_STEPS, batch_size=INVERSION_BATCH, generator=bench.generator, advance=advance,
    )  # fmt: skip
    unlearn(
        bench.network,
        bench.repair,
        suspicion.triggers.join(fresh),
        suspicion.bounds.repeat(2),
        course,
        anchor=anchor,
        steps=_num_unlearn_steps(suspicion),
        generator=bench.generator,
        mask=mask,
        advance=advance,
    )


def _num_unlearn_steps(suspicion: Suspicion) -> int:
    return max(LEAST_UNLEARN_STEPS, UNLEARN_STEPS * len(suspicion.targets))


def _repair(
    bench: Workbench, outcome: Outcome, before: Snapshot, suspicion: Suspicion, budget: AccuracyBudget | None
) -> Outcome:
    """Unlearn until no bounded trigger works any more, then keep as much of the way as the budget allows."""
    network, mask = bench.network, outcome.mask
    accuracy_pruned = _select_accuracy(bench)
    with bench.phase("repair", FRESH_STEPS + _num_unlearn_steps(suspicion)) as advance:
        course = SURE if outcome.verdict.verdict == "backdoored" else UNSURE
        _unlearn(bench, suspicion, before, course, mask, advance)
    repaired = snapshot(network)
    network.load(before)
    right_before_N = right(bench)
    masks.silence(network, mask)
    start = snapshot(network)
    share = walk_back(bench, start, repaired, right_before_N, budget)
    estimate = _estimate(bench, before, suspicion)
    if estimate.after <= REPAIRED_AT:
        status, reason = "repaired", "No synthesised trigger of the suspect's size works any more."
    elif estimate.after <= NOT_REPAIRED_AT:
        status, reason = "partly_repaired", "Synthesised triggers work less often, and still too often."
    else:
        status, reason = "not_repaired", "Synthesised triggers still work on most images."
    if share < 1:
        reason += f" Of the way from the pruned network to the repaired one {share:.0%} fits the accuracy budget."
    repair = Repair(
        status=status,  # type: ignore[arg-type]
        reason=reason,
        rounds=1,
        classes=[target for target in suspicion.targets if target != ANYWHERE],
        share_kept=share,
        accuracy_before=float(right_before_N.double().mean()),
        accuracy_pruned=accuracy_pruned,
        accuracy_after=_select_accuracy(bench),
    )
    return dataclasses.replace(outcome, repair=repair, estimate=estimate)


def _estimate(bench: Workbench, before: Snapshot, suspicion: Suspicion) -> SyntheticAttackSuccess:
    """The largest success of the suspect's triggers, and of others of up to `GROWTH` times their size, searched now.

    Half of these begin where the suspect's were and never leave the bound; half begin anew and are cut to it.
    """
    network, select = bench.network, bench.select
    found = suspicion.triggers

    def search(start: Triggers | None) -> Triggers:
        return synthesise(
            network, bench.repair.pixels_NCHW, bench.repair.labels, suspicion.targets, family="mask",
            steps=ESTIMATE_STEPS, batch_size=INVERSION_BATCH, start=start,
            max_size_T=None if start is None else suspicion.bounds, generator=bench.generator, advance=advance,
        )  # fmt: skip

    with bench.phase("estimate", 2 * ESTIMATE_STEPS) as advance:
        anew, near = search(None).bounded(suspicion.bounds), search(found)
        everything = found.join(anew).join(near)
        after = float(success(network, everything, select.pixels_NCHW, select.labels).amax())
        now = snapshot(network)
        network.load(before)
        largest_before = float(success(network, found, select.pixels_NCHW, select.labels).amax())
        network.load(now)
    return SyntheticAttackSuccess(before=largest_before, after=after, num_triggers=len(everything))


def _select_accuracy(bench: Workbench) -> float:
    return float(right(bench).double().mean())
