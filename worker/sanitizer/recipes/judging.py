"""Ask, invert, try, judge: what `auto` does before it changes anything, and a recipe that does nothing else."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from worker.sanitizer import verdict as verdicts
from worker.sanitizer.exhibits import Suspected
from worker.sanitizer.inspection import Findings, inspect, num_steps
from worker.sanitizer.recipes.prune import profiled
from worker.sanitizer.recipes.scope import in_scope
from worker.sanitizer.recipes.suspicion import Suspicion, suspect
from worker.sanitizer.recipes.trials import try_targets
from worker.sanitizer.recipes.workbench import NOT_ATTEMPTED, Outcome, Workbench
from worker.sanitizer.repair import Snapshot, snapshot
from worker.sanitizer.report import Verdict
from worker.sanitizer.trigger import success
from worker.sanitizer.variety import choose

_LEFT_ALONE = "The specification asks for a verdict alone, so nothing was changed."


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What is known of a suspect that nothing was done to yet.

    Attributes:
        bench: The workbench, with what stands for patchworks of this network.
        before: The suspect's tensors.
        findings: Of the inversions.
        suspicion: Whom to unlearn, and how widely.
        verdict: The verdict.
    """

    bench: Workbench
    before: Snapshot
    findings: Findings
    suspicion: Suspicion
    verdict: Verdict

    def exhibited(self) -> list[Suspected]:
        """The suspects' triggers, each with its success on the selection images now."""
        select, triggers = self.bench.select, self.suspicion.triggers
        shares = success(self.bench.network, triggers, select.pixels_NCHW, select.labels).tolist()
        return [Suspected(triggers=triggers, which=row, success=share) for row, share in enumerate(shares)]


def judge(bench: Workbench) -> Outcome:
    """Say what the suspect is, with all the evidence, and leave it as it is."""
    known = judged(bench)
    outcome = profiled(known.bench, known.exhibited(), _LEFT_ALONE)
    return dataclasses.replace(
        outcome, verdict=known.verdict, repair=dataclasses.replace(NOT_ATTEMPTED, reason=_LEFT_ALONE)
    )


def judged(bench: Workbench) -> Judged:
    """Ask what the network knows, invert it for every class, unlearn the likely ones on trial, and judge.

    Raises:
        NetworkRefusedError: The specification's scope names a layer that is not there.
        NonFiniteOutputsError: The network answers NaN or infinity to changed images.
    """
    network, spec = bench.network, bench.spec
    in_scope(network, spec.scope)  # a layer that is not there is refused before any work
    before = snapshot(network)
    with bench.phase("ask", 1) as advance:
        vary, why = choose(network, bench.repair, before, seed=spec.seed)
        advance(1)
    bench = dataclasses.replace(bench, vary=vary)
    with bench.phase("invert", num_steps()) as advance:
        findings = inspect(
            network, bench.repair, bench.select, bench.num_classes, generator=bench.generator, vary=vary,
            advance=advance,
        )  # fmt: skip
    candidates = try_targets(bench, findings, before)
    verdict = verdicts.judge(findings, candidates, bench.num_classes)
    if why:
        verdict = dataclasses.replace(verdict, reason=f"{verdict.reason} {why}")
    return Judged(
        bench=bench, before=before, findings=findings, suspicion=suspect(candidates, verdict), verdict=verdict
    )
