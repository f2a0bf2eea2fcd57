"""Several recipes on one suspect: each starts again from it, with the same images and seed, and gets one row."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from worker.sanitizer import evidence, scoring
from worker.sanitizer.case import Case
from worker.sanitizer.errors import SanitizerError
from worker.sanitizer.exhibits import Suspected
from worker.sanitizer.recipes import Outcome, Phase, Workbench, carry_out
from worker.sanitizer.report import ComparisonRow
from worker.sanitizer.scoring import Predictions
from worker.sanitizer.spec import SanitizeSpec
from worker.sanitizer.trigger import success


def workbench(case: Case, spec: SanitizeSpec, phase: Phase) -> Workbench:
    """What a recipe is given: a generator of its own, and trigger samples only where the specification lets them."""
    return Workbench(
        network=case.network,
        num_classes=case.num_classes,
        repair=case.profile,
        select=case.select,
        guide=case.guide if spec.guided_by_trigger_samples else None,
        spec=spec,
        generator=torch.Generator().manual_seed(spec.seed),
        phase=phase,
    )


def compare(
    case: Case,
    spec: SanitizeSpec,
    suspect: Mapping[str, Tensor],
    before: Predictions,
    triggers: Sequence[Suspected],
    phase: Phase,
) -> list[ComparisonRow]:
    """A row for each recipe of `spec.compare`; a recipe's refusal is its row, and the job goes on.

    Args:
        case: The job's material; its network is left as the last recipe made it.
        spec: What the client asked for.
        suspect: The suspect's tensors in float32.
        before: What the suspect predicts.
        triggers: What the main recipe synthesised.
        phase: Progress and timing; each recipe is one phase of the job, `compare_` and its name.
    """
    rows = []
    for recipe in spec.compare:
        case.network.bounds.lift()
        case.network.load(suspect)
        bench = workbench(case, spec.of_compared(recipe), _as_one(phase, f"compare_{recipe}"))
        started = time.perf_counter()
        try:
            outcome = carry_out(recipe, bench)
        except SanitizerError as refusal:
            spent = round(time.perf_counter() - started, 3)
            rows.append(
                ComparisonRow(recipe=recipe, status="refused", code=refusal.code, reason=refusal.message, seconds=spent)
            )
            continue
        spent = time.perf_counter() - started
        # Scored as a file would be that holds the checkpoint's own dtypes.
        original = case.checkpoint.tensors
        case.network.load(original | evidence.changed(original, suspect, case.network.tensors))
        rows.append(row(case, recipe, before, outcome, triggers, spent))
    return rows


def row(
    case: Case, recipe: str, before: Predictions, outcome: Outcome, triggers: Sequence[Suspected], seconds: float
) -> ComparisonRow:
    """Score the network as it is now, after the recipe.

    Args:
        case: The job's material.
        recipe: Which one it was.
        before: What the suspect predicts.
        outcome: What the recipe says that it did.
        triggers: What the main recipe synthesised.
        seconds: How long the recipe took.
    """
    after = scoring.score(case)
    attack = scoring.attack_success(case, before, after)
    select = case.select
    shares = [float(success(case.network, one.trigger, select.pixels_NCHW, select.labels)) for one in triggers]
    return ComparisonRow(
        recipe=recipe,
        status="done",
        reason=outcome.choice.reason,
        accuracy=scoring.accuracy(case, before, after).after,
        attack_success=attack.after,
        robust_accuracy=attack.robust_accuracy_after,
        synthetic_attack_success=max(shares, default=None),
        num_pruned=outcome.choice.num_pruned,
        seconds=round(seconds, 3),
    )


def _as_one(phase: Phase, name: str) -> Phase:
    """The phases of a recipe under one name, so that they do not add to those of the main recipe."""

    @contextmanager
    def named(_name: str, total: int) -> Iterator[Callable[[int], None]]:
        with phase(name, total) as advance:
            yield advance

    return named
