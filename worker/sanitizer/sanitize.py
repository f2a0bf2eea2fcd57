"""The one place that knows the order of the steps: load, score, run the recipe, write, score again, prove."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from worker.sanitizer import case as cases
from worker.sanitizer import checkpoint as checkpoints
from worker.sanitizer import comparison, device, evidence, figures, scoring
from worker.sanitizer.activations import ChannelStatistics, batched, profile
from worker.sanitizer.bias import layer_bias
from worker.sanitizer.case import Case
from worker.sanitizer.errors import InvalidSpecError
from worker.sanitizer.exhibits import Exhibits
from worker.sanitizer.recipes import Outcome, carry_out
from worker.sanitizer.repair import snapshot
from worker.sanitizer.report import SCHEMA_VERSION, LayerBias, Report, Split, TensorDigest
from worker.sanitizer.spec import AccuracyBudget, ArchitectureSpec, InputSpec, SanitizeSpec

# Of what a network computes with; smaller shares are tables of positions, masks and the like.
NOTEWORTHY_FIXED_SHARE = 0.05
# Classes, or operators, that a warning names.
MAX_NAMED = 10

Progress = Callable[[str, int, int], None]


@dataclass(slots=True)
class Clock:
    """Announces each phase and measures how long it took."""

    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str, total: int = 1) -> Iterator[Callable[[int], None]]:
        """Time the block; what it yields is called with the size of each step done."""
        done = 0

        def advance(step: int) -> None:
            nonlocal done
            done = min(total, done + step)
            self.progress(name, done, total)

        started = time.perf_counter()
        self.progress(name, 0, total)
        yield advance
        self.progress(name, total, total)
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - started, 3)


def sanitize(
    *,
    checkpoint_path: Path,
    clean_path: Path,
    output_path: Path,
    architecture: ArchitectureSpec,
    input_spec: InputSpec,
    spec: SanitizeSpec,
    triggered_path: Path | None = None,
    target_class: int | None = None,
    figures_path: Path | None = None,
    progress: Progress = lambda _phase, _done, _total: None,
) -> Report:
    """Sanitize one checkpoint.

    Args:
        checkpoint_path: The suspect.
        clean_path: The clean labelled set.
        output_path: Where the sanitized checkpoint goes, in the suspect's format.
        architecture: Which network the tensors belong to.
        input_spec: Size and normalisation.
        spec: What to do.
        triggered_path: Trigger samples; half of them score and never guide.
        target_class: The class that the trigger leads to, if the client knows it.
        figures_path: A folder for the report's figures, made if there are any; None draws none.
        progress: Called with phase, done and total.

    Returns:
        The report; the checkpoint lies at `output_path`.

    Raises:
        SanitizerError: A refusal, with its code.
    """
    if spec.guided_by_trigger_samples and triggered_path is None:
        raise InvalidSpecError(f"spec.inputs `{spec.inputs}` needs a triggered dataset. Send one, or use `synthetic`.")
    target = device.choose(spec.device)
    clock = Clock(progress)
    with device.deterministic(spec.seed, target):
        with clock.phase("load"):
            case = cases.load(
                checkpoint_path=checkpoint_path,
                clean_path=clean_path,
                triggered_path=triggered_path,
                architecture=architecture,
                input_spec=input_spec,
                target_class=target_class,
                seed=spec.seed,
                target=target,
            )
        with clock.phase("score_before"):
            before = scoring.score(case)
        suspect = snapshot(case.network)
        started = time.perf_counter()
        outcome = carry_out(spec.recipe, comparison.workbench(case, spec, clock.phase))
        spent = time.perf_counter() - started
        caps, bounds = case.network.bounds.by_value(), case.network.bounds.copies()
        with clock.phase("write"):
            changed = evidence.changed(case.checkpoint.tensors, suspect, case.network.tensors)
            case.checkpoint.write(output_path, changed, caps)
        with clock.phase("score_after"):
            # What is scored is the file: read it back as its user will.
            written = checkpoints.read(output_path)
            case.network.load(written.tensors)
            read = cases.network_of(written, architecture, input_spec, target) if caps else case.network
            after = scoring.score(dataclasses.replace(case, network=read))
        compared = []
        if spec.compare:
            main = comparison.row(case, spec.recipe, before, outcome, outcome.triggers, spent)
            compared = [main, *comparison.compare(case, spec, suspect, before, outcome.triggers, clock.phase)]
        with clock.phase("figures", 2) as advance:
            case.network.bounds.lift()
            lifted = case.network.bounds.copies()
            case.network.load(suspect)
            statistics = outcome.statistics or profile(
                case.network, batched(case.profile.pixels_NCHW), case.network.sites
            )
            bias = _bias(case, statistics, outcome)
            advance(1)
            drawn = []
            if figures_path is not None:
                budget = spec.selection.max_accuracy_drop if isinstance(spec.selection, AccuracyBudget) else None
                exhibits = Exhibits(
                    network=case.network,
                    before={**case.checkpoint.tensors, **lifted},
                    after={**written.tensors, **bounds},
                    clean=case.holdout,
                    triggered=case.score,
                    target_class=case.target_class,
                    suspected=outcome.triggers,
                    bias=bias,
                    curve=outcome.curve,
                    num_pruned=outcome.choice.num_pruned,
                    max_accuracy_drop=budget,
                )
                drawn = figures.write_all(figures_path, exhibits)
        with clock.phase("prove"):
            digests = evidence.tensor_digests(case.checkpoint.tensors, written.tensors)
            files = [evidence.file_digest("checkpoint", case.checkpoint.format, checkpoint_path)]
            files.append(evidence.file_digest("clean_set", case.clean_format, clean_path))
            if triggered_path is not None and case.triggered_format is not None:
                files.append(evidence.file_digest("triggered_set", case.triggered_format, triggered_path))
            files.append(evidence.file_digest("sanitized_checkpoint", written.format, output_path))
    return Report(
        schema_version=SCHEMA_VERSION,
        spec=dataclasses.asdict(spec),
        architecture=dataclasses.asdict(architecture),
        input=dataclasses.asdict(input_spec),
        accuracy=scoring.accuracy(case, before, after),
        attack_success=scoring.attack_success(case, before, after),
        split=_split(case),
        choice=outcome.choice,
        curve=outcome.curve,
        layers=evidence.layers(case.network, statistics, outcome.scores, outcome.mask, outcome.by_criterion),
        skipped_layers=dict(case.network.skipped),
        tensors=digests,
        files=files,
        environment=evidence.environment(target, spec.seed),
        seconds=clock.seconds,
        warnings=_warnings(case, digests, scoring.lost_recall(case, before, after), capped=bool(caps)),
        verdict=outcome.verdict,
        repair=outcome.repair,
        synthetic_attack_success=outcome.estimate,
        caps=dataclasses.replace(outcome.caps, layers=evidence.capped(case.network, caps)),
        bias=bias,
        norms=outcome.norms,
        figures=drawn,
        comparison=compared,
    )


def _bias(case: Case, clean: dict[str, ChannelStatistics], outcome: Outcome) -> list[LayerBias]:
    """How the suspect's layers answer to a trigger: the client's where there is one (its scoring half), else ours."""
    if case.score is not None:
        supplied = profile(case.network, batched(case.score.pixels_NCHW), case.network.sites)
        return layer_bias(clean, supplied, "supplied")
    synthetic = outcome.triggered
    if outcome.triggers and not synthetic:
        stamped = (one.stamped(case.profile).pixels_NCHW for one in outcome.triggers)
        synthetic = profile(case.network, stamped, case.network.sites)
    return layer_bias(clean, synthetic, "synthetic")


def _split(case: Case) -> Split:
    return Split(
        num_profile=len(case.profile),
        num_select=len(case.select),
        num_holdout=len(case.holdout),
        num_triggered_guide=0 if case.guide is None else len(case.guide),
        num_triggered_score=0 if case.score is None else len(case.score),
    )


def _warnings(case: Case, digests: Sequence[TensorDigest], lost: Mapping[int, float], *, capped: bool) -> list[str]:
    warnings = []
    rarest = int(torch.bincount(case.profile.labels, minlength=case.num_classes).min())
    if rarest < cases.FEW_PER_CLASS:
        warnings.append(f"The rarest class has {rarest} images to profile with; send more for a steadier result.")
    if lost:
        named = ", ".join(f"{index} ({100 * drop:.0f} points)" for index, drop in list(lost.items())[:MAX_NAMED])
        more = f" and {len(lost) - MAX_NAMED} more" if len(lost) > MAX_NAMED else ""
        warnings.append(f"Classes that lost recall on the held-out images, more than chance explains: {named}{more}.")
    if not any(digest.changed for digest in digests):
        warnings.append("No tensor was changed: the checkpoint that comes back holds the weights that were sent.")
    fixed = case.network.fixed_share()
    if fixed > NOTEWORTHY_FIXED_SHARE:
        warnings.append(
            f"{fixed:.0%} of the numbers that the network computes with can be changed by no training: they are "
            "constants of the file, or stored where nothing can be overwritten. Export its weights as parameters."
        )
    operators = case.network.blind_operators()
    if operators:
        named = ", ".join(operators[:MAX_NAMED])
        warnings.append(
            f"No gradient passes some of the network's operators ({named}): a trigger that works behind them alone is "
            "found by no search."
        )
    outputs = case.network.num_outputs
    if outputs is not None and outputs > case.num_classes:
        warnings.append(
            f"The network has {outputs} answers for {case.num_classes} declared classes; triggers that lead to the "
            "others were not searched for. Declare every class."
        )
    if capped:
        warnings.append("Operators were added to the network: the file that comes back bounds activations.")
    return warnings
