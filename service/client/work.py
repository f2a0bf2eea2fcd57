"""The whole job as a client does it: upload, submit, wait, download, save the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from service.client import show
from service.client.api import ApiError, Client


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The files of one job, and what must be said about them."""

    checkpoint: Path
    metadata: Mapping[str, Any]
    clean: Path
    triggered: Path | None = None
    target_class: int | None = None
    spec: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What came of it, and where it is."""

    job_id: str
    report: dict[str, Any]
    checkpoint_path: Path
    report_path: Path


def preview(client: Client, inputs: Inputs, console: Console) -> dict[str, Any]:
    """Upload the checkpoint and the clean set, look at them together, and return what was found.

    Raises:
        ApiError: the service refused, or the job failed.
        OSError: a file cannot be read.
    """
    _check_files(inputs)
    model_id, clean_id = _upload(client, inputs)
    job = client.preview(clean_id, model_id)
    with show.live_progress(console) as on_progress:
        job = client.wait(job["id"], on_progress=on_progress)
    _raise_for_end(job)
    return client.report(job["id"])


def sanitize(
    client: Client, inputs: Inputs, output: Path, console: Console, *, on_poll: Callable[[], None] = lambda: None
) -> Results:
    """Do the whole job. The report is saved beside the checkpoint, as `<output>.report.json`.

    `on_poll` is called each time the job was asked for; what it raises ends the wait.

    Raises:
        ApiError: the service refused, or the job failed.
        OSError: a file cannot be read or written.
    """
    _check_files(inputs)
    output.parent.mkdir(parents=True, exist_ok=True)  # now, not when the job has taken its time
    model_id, clean_id = _upload(client, inputs)
    triggered_id = None
    if inputs.triggered is not None:
        triggered = client.create_dataset("triggered", name=inputs.triggered.name, target_class=inputs.target_class)
        client.upload_dataset(triggered["id"], inputs.triggered)
        triggered_id = triggered["id"]
    job = client.submit(model_id, clean_id, triggered_dataset_id=triggered_id, spec=inputs.spec)
    console.print(f"job {job['id']}: uploaded {inputs.checkpoint.name} and {inputs.clean.name}")
    with show.live_progress(console) as on_progress:

        def on_job(job: dict[str, Any]) -> None:
            on_progress(job)
            on_poll()

        job = client.wait(job["id"], on_progress=on_job)
    _raise_for_end(job)
    report = client.report(job["id"])
    client.download(job["id"], output)
    report_path = output.with_name(output.name + ".report.json")
    report_path.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return Results(job_id=job["id"], report=report, checkpoint_path=output, report_path=report_path)


def _check_files(inputs: Inputs) -> None:
    """Fail for a file that is not there before the first upload, not after it."""
    for path in (inputs.checkpoint, inputs.clean, inputs.triggered):
        if path is not None:
            path.open("rb").close()


def _upload(client: Client, inputs: Inputs) -> tuple[str, str]:
    """Upload the checkpoint and the clean set; return their ids."""
    model = client.create_model(inputs.metadata)
    client.upload_model(model["id"], inputs.checkpoint)
    clean = client.create_dataset("clean", name=inputs.clean.name)
    client.upload_dataset(clean["id"], inputs.clean)
    return model["id"], clean["id"]


def _raise_for_end(job: Mapping[str, Any]) -> None:
    if job["state"] != "succeeded":
        error = job.get("error") or {"code": f"job_{job['state']}", "message": f"the job was {job['state']}"}
        raise ApiError(error["code"], error["message"])
