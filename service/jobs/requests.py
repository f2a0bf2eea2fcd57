"""The client's side of a job: submit, read, cancel."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from sqlalchemy import case, select, update
from sqlalchemy.orm import Session, sessionmaker

from service import db, ids
from service.errors import ConflictError, NotFoundError, UnprocessableError
from service.resources import find_ready
from service.tables import (
    CANCELLED,
    CANCELLING,
    FAILED,
    OPEN_STATES,
    PREVIEW,
    QUEUED,
    RUNNING,
    SANITIZE,
    SUCCEEDED,
    DatasetRow,
    JobFigureRow,
    JobRow,
    ModelRow,
)

FIGURE_NAME = re.compile(r"[a-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The sanitized checkpoint of a job; its format is that of the model it came from."""

    sha256: str
    size: int
    format: str | None
    model_id: str
    model_name: str | None


def submit(
    sessions: sessionmaker[Session],
    tenant: str,
    *,
    model_id: str,
    clean_dataset_id: str,
    triggered_dataset_id: str | None,
    spec: dict[str, Any],
    needs_triggered: bool,
    kind: str = SANITIZE,
) -> JobRow:
    """Record a job as queued and commit. The caller sends the hint afterwards, then calls `mark_sent`.

    `needs_triggered` is the specification's own word on whether it can do without trigger samples.

    Raises:
        NotFoundError: model_not_found, dataset_not_found.
        ConflictError: model_not_ready, dataset_not_ready.
        UnprocessableError: wrong_dataset_kind, triggered_dataset_required, target_class_out_of_range.
    """
    if needs_triggered and triggered_dataset_id is None:
        raise UnprocessableError(
            f"spec.inputs is {spec['inputs']!r}, which profiles trigger samples: give a triggered_dataset_id, "
            "or let spec.inputs be synthetic_difference, which needs none",
            code="triggered_dataset_required",
        )
    with db.writing(sessions) as session:
        # Locked for the moment, so that a deletion waits and then sees this job, or is seen here.
        model = find_ready(session, ModelRow, tenant, model_id)
        clean = find_ready(session, DatasetRow, tenant, clean_dataset_id)
        _check_kind(clean, "clean", "a preview" if kind == PREVIEW else "clean_dataset_id")
        if triggered_dataset_id is not None:
            triggered = find_ready(session, DatasetRow, tenant, triggered_dataset_id)
            _check_kind(triggered, "triggered", "triggered_dataset_id")
            _check_target_class(triggered, model)
        job = JobRow(
            id=ids.new_id(ids.JOB),
            tenant=tenant,
            kind=kind,
            model_id=model_id,
            clean_dataset_id=clean_dataset_id,
            triggered_dataset_id=triggered_dataset_id,
            spec=spec,
            state=QUEUED,
            created_at=db.now(session),
            attempt=0,
            token=0,
            num_sent=0,
        )
        session.add(job)
    return job


def get(sessions: sessionmaker[Session], tenant: str, job_id: str) -> JobRow:
    """The job's row, without its report.

    Raises:
        NotFoundError: job_not_found.
    """
    with sessions() as session:
        return _find(session, tenant, job_id)


def list_jobs(
    sessions: sessionmaker[Session], tenant: str, *, limit: int, before: str | None = None, state: str | None = None
) -> list[JobRow]:
    """Up to `limit` jobs, newest first, older than the id `before`."""
    statement = select(JobRow).where(JobRow.tenant == tenant).order_by(JobRow.id.desc()).limit(limit)
    if before is not None:
        statement = statement.where(JobRow.id < before)
    if state is not None:
        statement = statement.where(JobRow.state == state)
    with sessions() as session:
        return list(session.scalars(statement))


def cancel(sessions: sessionmaker[Session], tenant: str, job_id: str) -> JobRow:
    """Cancel the job: at once while it waits, else by asking its worker. Asking twice is the same as once.

    Raises:
        NotFoundError: job_not_found.
        ConflictError: job_already_finished.
    """
    with db.writing(sessions) as session:
        at = db.now(session)
        queued = JobRow.state == QUEUED
        session.execute(
            update(JobRow)
            .where(JobRow.id == job_id, JobRow.tenant == tenant, JobRow.state.in_((QUEUED, RUNNING)))
            .values(
                state=case((queued, CANCELLED), else_=CANCELLING),
                finished_at=case((queued, at), else_=None),
                error_code=None,
                error_message=None,
            )
        )
        job = _find(session, tenant, job_id)
        if job.state in (SUCCEEDED, FAILED):
            raise ConflictError(f"the job has {job.state} already", code="job_already_finished")
        return job


def report(sessions: sessionmaker[Session], tenant: str, job_id: str) -> str:
    """The finished job's report, as the JSON text that the worker wrote.

    Raises:
        NotFoundError: job_not_found.
        ConflictError: job_not_finished, job_failed, job_cancelled.
    """
    job = _finished(sessions, tenant, job_id)
    with sessions() as session:
        text = session.scalar(select(JobRow.report).where(JobRow.id == job.id))
    assert text is not None
    return text


def checkpoint(sessions: sessionmaker[Session], tenant: str, job_id: str) -> Result:
    """Where the finished job's checkpoint is, and what to call it.

    Raises:
        NotFoundError: job_not_found, checkpoint_not_found.
        ConflictError: job_not_finished, job_failed, job_cancelled.
    """
    job = _finished(sessions, tenant, job_id)
    if job.kind == PREVIEW:
        raise NotFoundError(
            "a preview changes nothing, so it has no checkpoint; its report says what it found",
            code="checkpoint_not_found",
        )
    assert job.checkpoint_sha256 is not None
    assert job.checkpoint_size is not None
    with sessions() as session:
        model = session.get_one(ModelRow, job.model_id)
    return Result(
        sha256=job.checkpoint_sha256,
        size=job.checkpoint_size,
        format=model.format,
        model_id=model.id,
        model_name=model.name,
    )


def figures(sessions: sessionmaker[Session], tenant: str, job_id: str) -> list[JobFigureRow]:
    """The figures of the finished job's report, in its order; none for a job that drew none.

    Raises:
        NotFoundError: job_not_found.
        ConflictError: job_not_finished, job_failed, job_cancelled.
    """
    job = _finished(sessions, tenant, job_id)
    with sessions() as session:
        rows = session.scalars(
            select(JobFigureRow).where(JobFigureRow.job_id == job.id).order_by(JobFigureRow.position)
        )
        return list(rows)


def figure(sessions: sessionmaker[Session], tenant: str, job_id: str, name: str) -> JobFigureRow:
    """One of them.

    Raises:
        NotFoundError: job_not_found, figure_not_found.
        ConflictError: job_not_finished, job_failed, job_cancelled.
    """
    job = _finished(sessions, tenant, job_id)
    row = None
    if FIGURE_NAME.fullmatch(name):
        with sessions() as session:
            row = session.get(JobFigureRow, (job.id, name))
    if row is None:
        raise NotFoundError("the job has no figure of this name; its report lists them", code="figure_not_found")
    return row


def _finished(sessions: sessionmaker[Session], tenant: str, job_id: str) -> JobRow:
    job = get(sessions, tenant, job_id)
    if job.state in OPEN_STATES:
        raise ConflictError(f"the job is {job.state}; ask again when it has ended", code="job_not_finished")
    if job.state == FAILED:
        raise ConflictError(f"the job failed ({job.error_code}): {job.error_message}", code="job_failed")
    if job.state == CANCELLED:
        raise ConflictError("the job was cancelled, so it has no result; submit it again for one", code="job_cancelled")
    return job


def _find(session: Session, tenant: str, job_id: str) -> JobRow:
    job = None
    if ids.is_id(ids.JOB, job_id):
        job = session.scalar(select(JobRow).where(JobRow.id == job_id, JobRow.tenant == tenant))
    if job is None:
        raise NotFoundError("there is no job with this id", code="job_not_found")
    return job


def _check_kind(dataset: DatasetRow, kind: str, field: str) -> None:
    if dataset.kind != kind:
        raise UnprocessableError(
            f"{field} needs a {kind} data set, and {dataset.id} is a {dataset.kind} one", code="wrong_dataset_kind"
        )


def _check_target_class(triggered: DatasetRow, model: ModelRow) -> None:
    num_classes = model.architecture["num_classes"]
    if triggered.target_class is not None and triggered.target_class >= num_classes:
        raise UnprocessableError(
            f"the triggered data set's target_class is {triggered.target_class}, and the model has classes "
            f"0 to {num_classes - 1}",
            code="target_class_out_of_range",
        )
