"""Judge the product: sanitize the battery's models as a user would, and score what comes back with the true trigger.

    python -m benchmarks.battery.judge --list
    python -m benchmarks.battery.judge --only 'resnet-*-10pc-*' --recipes auto,ft --seeds 0,1,2 --threads 1

Each job gets a checkpoint and a clean set as files and nothing else; the trigger and the target class are only ever
used to score. Rows go to `judgements.jsonl` in the cache; what is there is not done again.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch

from benchmarks.battery import metrics, provenance, rows
from benchmarks.battery.catalogue import ModelConfig, all_models
from benchmarks.battery.train import cache_folder, evaluate, read_record
from benchmarks.battery.trial import WEIGHTS, Form, Trial, prepare, reactivated
from worker.sanitizer.device import DeviceNotAvailableError, choose
from worker.sanitizer.errors import InvalidSpecError, SanitizerError
from worker.sanitizer.report import Report, to_json
from worker.sanitizer.sanitize import sanitize
from worker.sanitizer.spec import SanitizeSpec, parse_spec

SCHEMA_VERSION = 1
# The recipe's name for a specification that names none.
DEFAULT = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One sanitization to judge.

    Attributes:
        recipe: A name, or a name and fields of the specification (see `make_spec`); with `@pt2` behind it the model is
            sent as an exported program, which can carry activation caps, in place of weights alone.
    """

    config: ModelConfig
    recipe: str
    seed: int
    num_images: int
    library: str
    device: str = "cpu"

    @property
    def spec(self) -> SanitizeSpec:
        """The specification that the product is given."""
        return make_spec(self.recipe, seed=self.seed, device=self.device)

    @property
    def form(self) -> Form:
        """What the model is sent as."""
        return form_of(self.recipe)

    @property
    def id(self) -> str:
        """A digest of all that decides the figures."""
        parts = [self.config.key, self.recipe, self.seed, self.num_images, asdict(self.spec), self.library]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def form_of(recipe: str) -> Form:
    """Return what the model is sent as, which stands behind the recipe's `@`.

    Raises:
        InvalidSpecError: it is nothing that models are sent as.
    """
    named = recipe.partition("@")[2] or WEIGHTS
    if named not in get_args(Form):
        raise InvalidSpecError(f"models are sent as {' or '.join(get_args(Form))}, not as {named!r}")
    return cast("Form", named)


def make_spec(recipe: str, *, seed: int, device: str) -> SanitizeSpec:
    """Return the specification of `NAME` or `NAME:field=value:field=value`, where a value is JSON or a bare word.

    A field of the selection is named with a point: `selection.max_accuracy_drop=0.05`. The name `default` leaves the
    recipe to the product. What stands behind an `@` is no part of the specification: see `form_of`.

    Raises:
        InvalidSpecError: the product refuses it.
    """
    name, *changes = recipe.partition("@")[0].split(":")
    fields: dict[str, Any] = {} if name == DEFAULT else {"recipe": name}
    for change in changes:
        field, _, value = change.partition("=")
        group, point, inner = field.partition(".")
        place = fields.setdefault(group, {}) if point else fields
        try:
            place[inner or group] = json.loads(value)
        except json.JSONDecodeError:
            place[inner or group] = value
    return parse_spec(fields | {"seed": seed, "device": device})


def judge(job: Job, trial: Trial) -> rows.Row:
    """Run one job and return its row, without what identifies it.

    Raises:
        SanitizerError: the product refused the job.
    """
    with tempfile.TemporaryDirectory(prefix="lustrate-judge-") as name:
        scratch = Path(name)
        suspect, output = (scratch / f"{what}.{job.form}" for what in ("suspect", "out"))
        clean_set = scratch / "clean.npz"
        trial.write_model(suspect)
        trial.write_clean_set(clean_set)
        started = time.perf_counter()
        report = sanitize(
            checkpoint_path=suspect,
            clean_path=clean_set,
            output_path=output,
            architecture=trial.declared(job.form),
            input_spec=trial.input_spec,
            spec=job.spec,
        )
        seconds = time.perf_counter() - started
        sanitized = trial.load(output)
    figures = metrics.compare(trial.before, evaluate(sanitized, trial.unseen, trial.attack))
    twin = trial.twin_before
    figures["robust_accuracy_twin"] = None if twin is None else min(twin["robust_accuracy"])
    for key in ("reactivated_attack_success", "reactivated_accuracy", "reactivated_attack_success_twin"):
        figures[key] = None
    if trial.attack is not None:
        after = reactivated(sanitized, trial.unseen, trial.attack, job.seed)
        figures["reactivated_attack_success"] = max(after["attack_success"])
        figures["reactivated_accuracy"] = after["clean_accuracy"]
        if trial.twin_reactivated is not None:
            figures["reactivated_attack_success_twin"] = max(trial.twin_reactivated["attack_success"])
    return {
        **figures,
        **said(report),
        "num_scored": len(trial.unseen.test_labels_N),
        "seconds": round(seconds, 2),
        "threads": torch.get_num_threads(),
        "refused": None,
        "error": None,
    }


def said(report: Report) -> dict[str, Any]:
    """Return what the product's own report claims: verdict, status, estimates, channels. None where it says nothing."""
    document = json.loads(to_json(report))
    verdict = document.get("verdict") or {}
    repair = document.get("repair") or {}
    return {
        "verdict": verdict.get("verdict"),
        "target_classes": verdict.get("target_classes"),
        "score": verdict.get("score"),
        "evidence": verdict.get("evidence"),
        "status": repair.get("status"),
        "estimate": _estimate(document.get("synthetic_attack_success", repair.get("synthetic_attack_success"))),
        "num_pruned": report.choice.num_pruned,
        "num_in_scope": report.choice.num_in_scope,
        "phase_seconds": report.seconds,
    }


def plan(
    configs: Sequence[ModelConfig], *, recipes: Sequence[str], seeds: Sequence[int], num_images: int, library: str,
    device: str = "cpu",
) -> list[Job]:  # fmt: skip
    """Return the jobs, the first seed of every model before the second of any, so that a short night sees them all."""
    return [
        Job(config=config, recipe=recipe, seed=seed, num_images=num_images, library=library, device=device)
        for seed in seeds
        for config in configs
        for recipe in recipes
    ]


def run(jobs: Sequence[Job], folder: Path) -> int:
    """Judge what is not judged yet and append each row as it is found; return how many jobs failed."""
    path = folder / rows.FILE_NAME
    # As the jobs start, whatever is checked out while they run.
    commit = provenance.commit()
    num_failed = 0
    trial: Trial | None = None
    for job in jobs:
        # Read again each time: another process may share the file.
        if job.id in rows.finished(rows.read(path)):
            continue
        row: rows.Row = _identity(job, commit)
        try:
            if trial is None or not trial.is_for(job.config, job.seed, job.num_images):
                trial = prepare(folder, job.config, seed=job.seed, num_images=job.num_images)
            row |= judge(job, trial)
        except SanitizerError as error:
            # An answer like any other, such as a recipe for batch norm on a network without: it is not asked again.
            row |= {"refused": error.code, "error": None}
        except Exception as error:
            # One job must not end a night; its row says what happened, and the next run tries it again.
            num_failed += 1
            row |= {"refused": None, "error": f"{type(error).__name__}: {error}"}
            traceback.print_exc()
        rows.append(path, row)
        print(_line(job, row), flush=True)
    return num_failed


def admitted(configs: Sequence[ModelConfig], folder: Path) -> list[ModelConfig]:
    """Return the models that are trained and fit to measure with, and say which are left out."""
    fit = []
    for config in configs:
        record = read_record(folder, config)
        if record is not None and record["admitted"]:
            fit.append(config)
        else:
            print(f"{config.name}: left out, {'not trained' if record is None else record['reason']}", flush=True)
    return fit


def main(arguments: list[str] | None = None) -> int:
    """Judge what is asked for; return 1 where a job failed, 2 where nothing matches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="name the jobs and their state, and run nothing")
    parser.add_argument("--only", default="*", help="a pattern of model names, such as 'resnet-*-10pc-*'")
    parser.add_argument(
        "--recipes",
        default="auto",
        help="names, or NAME:field=value, or either with @pt2 behind it, separated by commas",
    )
    parser.add_argument("--seeds", default="0", help="seeds of the clean set and of the product, such as 0,1,2")
    parser.add_argument("--clean-images", type=int, default=500)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 is torch's choice")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    parser.add_argument("--shard", default="0/1", help="0/2 and 1/2 share the jobs between two processes")
    parser.add_argument(
        "--library", default=None, help="name of the library's version; default: a digest of its source"
    )
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    configs = [config for config in all_models() if fnmatch.fnmatch(config.name, options.only)]
    if not configs:
        print(f"no model matches {options.only!r}", file=sys.stderr)
        return 2
    folder = cache_folder()
    recipes = options.recipes.split(",")
    try:
        chosen = choose(options.device).type
        for recipe in recipes:
            form_of(recipe)
            make_spec(recipe, seed=0, device=chosen)
    except (InvalidSpecError, DeviceNotAvailableError) as error:
        print(error, file=sys.stderr)
        return 2
    jobs = plan(
        admitted(configs, folder),
        recipes=recipes,
        seeds=[int(seed) for seed in options.seeds.split(",")],
        num_images=options.clean_images,
        library=options.library or provenance.library_version(),
        device=chosen,
    )
    part, _, parts = options.shard.partition("/")
    jobs = jobs[int(part) :: int(parts)]
    if options.list:
        done = rows.finished(rows.read(folder / rows.FILE_NAME))
        for job in jobs:
            print(_line(job, done[job.id]) if job.id in done else f"{_title(job)}: not judged")
        return 0
    return 1 if run(jobs, folder) else 0


def _identity(job: Job, commit: str) -> rows.Row:
    config = job.config
    return {
        "schema_version": SCHEMA_VERSION,
        "id": job.id,
        "model": config.name,
        "key": config.key,
        "dataset": config.dataset,
        "architecture": config.architecture,
        "attack": config.attack,
        "rate": config.rate,
        "recipe": job.recipe,
        "spec": asdict(job.spec),
        "seed": job.seed,
        "num_images": job.num_images,
        "library": job.library,
        "commit": commit,
        "date": provenance.today(),
        "machine": provenance.machine(job.device),
        "device": job.device,
        "torch": torch.__version__,
    }


def _estimate(value: Any) -> float | None:  # noqa: ANN401 - any JSON
    """Return the rate after the repair, whether the report gives a number, an interval, or both sides."""
    if isinstance(value, dict):
        return _estimate(value.get("after", value.get("value")))
    return None if value is None else float(value)


def _title(job: Job) -> str:
    return f"{job.config.name} {job.recipe} seed {job.seed} images {job.num_images}"


def _line(job: Job, row: rows.Row) -> str:
    if row["error"] is not None:
        return f"{_title(job)}: failed, {row['error']}"
    if row["refused"] is not None:
        return f"{_title(job)}: refused, {row['refused']}"
    line = f"{_title(job)}: ACC {row['accuracy_before']:.2%} -> {row['accuracy_after']:.2%}"
    if row["der"] is not None:
        line += f", ASR {row['attack_success_before']:.2%} -> {row['attack_success_after']:.2%}"
        line += f", RA {row['robust_accuracy_after']:.2%}, DER {row['der']:.3f}"
        line += f", re-activated {row['reactivated_attack_success']:.2%}"
    return f"{line}, verdict {row['verdict']}, status {row['status']}, {row['seconds']:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
