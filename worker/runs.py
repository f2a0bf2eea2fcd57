"""One attempt at one job: claim, stage, compute, publish. No database session is open while a child computes."""

from __future__ import annotations

import enum
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pydantic
import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from service import blobs, jobs
from service.blobs import BlobMissingError
from service.jobs import Claim, HeartbeatAnswer
from service.settings import Settings
from service.tables import PREVIEW
from worker import protocol, results
from worker.process import INPUTS, OUTPUTS
from worker.results import UntrueResultError
from worker.sanitizer import findings
from worker.sanitizer.report import to_json
from worker.sanitizer.spec import ArchitectureSpec, InputSpec, SanitizeSpec
from worker.supervisor import Kind, Limits, Outcome, Supervisor, Tick

READ_BYTES = 1024 * 1024
BEATS_PER_LEASE = 4  # while files are staged and published: three may be late before the lease runs out

log = structlog.get_logger(__name__)


class Ending(enum.Enum):
    """What became of the attempt."""

    NOT_CLAIMED = "not_claimed"  # somebody else's, finished, or unknown: the hint was late or doubled
    FINISHED = "finished"
    GIVEN_BACK = "given_back"  # queued again: send a hint
    LOST = "lost"  # the lease went to somebody else; nothing was written


class _LeaseLostError(Exception):
    """Somebody else has the job."""


class _CancelledError(Exception):
    """The client asked for the end of the job."""


def run(
    sessions: sessionmaker[Session],
    settings: Settings,
    supervisor: Supervisor,
    job_id: str,
    worker_id: str,
    *,
    scratch: Path,
    should_stop: Callable[[], bool] = lambda: False,
) -> Ending:
    """Run one attempt and record how it ended.

    An error of the database leaves the row as it is: the lease runs out and the reaper queues the job again.

    Args:
        sessions: the database.
        settings: limits and the lease.
        supervisor: whose warm child takes the job.
        job_id: the hint.
        worker_id: for the record.
        scratch: a folder for this job's files.
        should_stop: true when this worker is to shut down.
    """
    claim = jobs.claim(
        sessions, job_id, worker_id, lease_seconds=settings.lease_seconds, max_attempts=settings.max_attempts
    )
    if claim is None:
        return Ending.NOT_CLAIMED
    with structlog.contextvars.bound_contextvars(job_id=job_id, tenant=claim.tenant, attempt=claim.attempt):
        log.info("job_claimed", token=claim.token)
        ending = _Attempt(sessions, settings, supervisor, claim, should_stop).run(scratch)
        log.info("job_attempt_ended", ending=ending.value)
        return ending


@dataclass(frozen=True, slots=True)
class _Folder:
    """Where one job's files are."""

    inputs: Path
    outputs: Path


class _Attempt:
    """A claim, and the means to do what it allows."""

    def __init__(
        self,
        sessions: sessionmaker[Session],
        settings: Settings,
        supervisor: Supervisor,
        claim: Claim,
        should_stop: Callable[[], bool],
    ) -> None:
        self._sessions = sessions
        self._settings = settings
        self._supervisor = supervisor
        self._claim = claim
        self._should_stop = should_stop
        self._beat_at = time.monotonic()

    def run(self, scratch: Path) -> Ending:
        try:
            with _job_folder(scratch) as folder:
                request = self._stage(folder)
                outcome = self._supervisor.run(
                    request.to_payload(),
                    limits=Limits(
                        deadline_seconds=self._settings.job_deadline_seconds,
                        memory_bytes=self._settings.job_memory_bytes,
                    ),
                    on_tick=self._on_tick,
                    should_stop=self._should_stop,
                )
                self._log(outcome)
                return self._settle(outcome, request)
        except _LeaseLostError:
            return Ending.LOST
        except _CancelledError:
            return self._finished(jobs.finish_cancelled(self._sessions, self._claim))
        except BlobMissingError:
            message = "the bytes of the model or of a data set are gone; upload them again"
            return self._finished(jobs.fail(self._sessions, self._claim, "content_missing", message))
        except UntrueResultError as error:
            log.exception("job_result_untrue")
            return self._given_back("worker_crashed", f"the job's process left an unusable result: {error}")
        except OSError:
            log.exception("job_files_failed")
            return self._given_back("worker_storage_failed", "the worker could not store the job's files")

    def _stage(self, folder: _Folder) -> protocol.Request:
        """Bring the inputs to files that the child may only read."""
        claim, inputs, outputs = self._claim, folder.inputs, folder.outputs
        files = {"checkpoint": claim.model_sha256, "clean": claim.clean_sha256, "triggered": claim.triggered_sha256}
        for name, sha256 in files.items():
            if sha256 is not None:
                with (inputs / name).open("xb") as file:
                    for chunk in self._beating(blobs.read(self._sessions, claim.tenant, sha256)):
                        file.write(chunk)
                (inputs / name).chmod(0o400)
        inputs.chmod(0o500)
        return protocol.Request(
            kind="preview" if claim.kind == PREVIEW else "sanitize",
            checkpoint_path=str(inputs / "checkpoint"),
            clean_path=str(inputs / "clean"),
            triggered_path=str(inputs / "triggered") if claim.triggered_sha256 is not None else None,
            target_class=claim.target_class,
            output_path=str(outputs / "checkpoint"),
            report_path=str(outputs / "report.json"),
            figures_path=str(outputs / "figures"),
            architecture=pydantic.TypeAdapter(ArchitectureSpec).validate_python(claim.architecture),
            input=pydantic.TypeAdapter(InputSpec).validate_python(claim.input),
            spec=pydantic.TypeAdapter(SanitizeSpec).validate_python(claim.spec),
            threads=self._settings.job_threads,
            max_file_bytes=self._settings.max_model_bytes,
            cpu_seconds=math.ceil(self._settings.job_deadline_seconds * (os.cpu_count() or 1)),
            memory_bytes=self._settings.job_memory_bytes,
        )

    def _settle(self, outcome: Outcome, request: protocol.Request) -> Ending:
        match outcome.kind:
            case Kind.SUCCEEDED:
                return self._publish(request)
            case Kind.FAILED:
                return self._finished(jobs.fail(self._sessions, self._claim, outcome.code, outcome.message))
            case Kind.CANCELLED:
                return self._finished(jobs.finish_cancelled(self._sessions, self._claim))
            case Kind.CRASHED:
                return self._given_back(outcome.code, outcome.message)
            case Kind.INTERRUPTED:
                given_back = jobs.hand_back(self._sessions, self._claim)
                return Ending.GIVEN_BACK if given_back else Ending.LOST
            case Kind.ABANDONED:
                return Ending.LOST

    def _publish(self, request: protocol.Request) -> Ending:
        """Store the checkpoint and figures, then, guarded by the token, make them and the report the job's result."""
        if request.kind == "preview":
            preview = results.read_preview(Path(request.report_path))
            return self._finished(jobs.succeed(self._sessions, self._claim, report_json=findings.to_json(preview)))
        report = results.read_report(Path(request.report_path))
        with results.open_plain(Path(request.output_path), max_bytes=request.max_file_bytes) as file:
            chunks = iter(lambda: file.read(READ_BYTES), b"")
            sha256, size = blobs.write(self._sessions, self._claim.tenant, self._beating(chunks))
        if [entry.sha256 for entry in report.files if entry.role == "sanitized_checkpoint"] != [sha256]:
            raise UntrueResultError("the report is about another checkpoint")
        figures = []
        for info, data in results.read_figures(Path(request.figures_path), report.figures):
            figure_sha256, figure_size = blobs.write(self._sessions, self._claim.tenant, self._beating(iter([data])))
            figures.append(
                jobs.Figure(
                    name=info.name, title=info.title, media_type=info.media_type, sha256=figure_sha256, size=figure_size
                )
            )
        return self._finished(
            jobs.succeed(
                self._sessions,
                self._claim,
                report_json=to_json(report),
                checkpoint_sha256=sha256,
                checkpoint_size=size,
                figures=figures,
            )
        )

    def _beating(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Pass the chunks on, and keep the lease meanwhile."""
        for chunk in chunks:
            yield chunk
            if time.monotonic() - self._beat_at >= self._settings.lease_seconds / BEATS_PER_LEASE:
                answer = self._heartbeat(None)
                if answer is HeartbeatAnswer.LEASE_LOST:
                    raise _LeaseLostError
                if answer is HeartbeatAnswer.CANCEL:
                    raise _CancelledError

    def _on_tick(self, progress: protocol.Progress | None) -> Tick:
        """Keep the lease while the child computes; a database away for less than a lease costs nothing."""
        try:
            answer = self._heartbeat(progress)
        except SQLAlchemyError:
            log.exception("heartbeat_failed")
            late = time.monotonic() - self._beat_at > self._settings.lease_seconds
            return Tick.ABANDON if late else Tick.CONTINUE
        return {
            HeartbeatAnswer.CONTINUE: Tick.CONTINUE,
            HeartbeatAnswer.CANCEL: Tick.CANCEL,
            HeartbeatAnswer.LEASE_LOST: Tick.ABANDON,
        }[answer]

    def _heartbeat(self, progress: protocol.Progress | None) -> HeartbeatAnswer:
        where = None if progress is None else (progress.phase, progress.done, progress.total)
        at = time.monotonic()
        answer = jobs.heartbeat(self._sessions, self._claim, lease_seconds=self._settings.lease_seconds, progress=where)
        self._beat_at = at
        return answer

    def _finished(self, written: bool) -> Ending:
        return Ending.FINISHED if written else Ending.LOST

    def _given_back(self, code: str, message: str) -> Ending:
        """Let another attempt be made; after the last one the job has failed."""
        if not jobs.release(self._sessions, self._claim, code, message):
            return Ending.LOST
        return Ending.FINISHED if self._claim.attempt >= self._claim.max_attempts else Ending.GIVEN_BACK

    def _log(self, outcome: Outcome) -> None:
        log.info(
            "job_process_ended",
            kind=outcome.kind.value,
            code=outcome.code,
            reason=outcome.message,
            protections=list(outcome.protections),
            seconds=round(outcome.seconds, 3),
            peak_memory_bytes=outcome.peak_memory_bytes,
        )
        if outcome.kind is Kind.CRASHED or outcome.code == "internal_error":
            log.error("job_process_log", tail=outcome.log_tail)


@contextmanager
def _job_folder(scratch: Path) -> Iterator[_Folder]:
    """Folders for one job where its process may read, and where it may write."""
    folders = []
    for name in (INPUTS, OUTPUTS):
        (scratch / name).mkdir(exist_ok=True)
        folders.append(Path(tempfile.mkdtemp(prefix="job-", dir=scratch / name)))
    try:
        yield _Folder(*folders)
    finally:
        for folder in folders:
            folder.chmod(0o700)
            shutil.rmtree(folder, ignore_errors=True)
