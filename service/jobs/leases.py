"""The worker's side of a job: a claim by compare-and-set, and writes that only the claim's owner can make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from sqlalchemy import and_, case, or_, update
from sqlalchemy.orm import Session, sessionmaker

from service import db
from service.tables import (
    CANCELLED,
    CANCELLING,
    FAILED,
    OWNED_STATES,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    DatasetRow,
    JobFigureRow,
    JobRow,
    ModelRow,
)

MAX_ERROR_MESSAGE = 2000
MAX_TITLE = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The right to run a job once, and everything that running it needs to know."""

    job_id: str
    tenant: str
    kind: str
    token: int
    attempt: int
    max_attempts: int
    architecture: dict[str, Any]
    input: dict[str, Any]
    spec: dict[str, Any]
    model_sha256: str
    model_format: str
    model_name: str | None
    clean_sha256: str
    triggered_sha256: str | None
    target_class: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A picture of the report whose bytes are stored already."""

    name: str
    title: str
    media_type: str
    sha256: str
    size: int


class HeartbeatAnswer(Enum):
    """What the owner should do next."""

    CONTINUE = "continue"
    CANCEL = "cancel"
    LEASE_LOST = "lease_lost"


def claim(
    sessions: sessionmaker[Session],
    job_id: str,
    worker_id: str,
    *,
    lease_seconds: float,
    max_attempts: int,
    now: datetime | None = None,
) -> Claim | None:
    """Take the job, if it waits or its owner's lease ran out; None if it is somebody else's, finished or unknown."""
    with db.writing(sessions) as session:
        at = now or db.now(session)
        taken = session.execute(
            update(JobRow)
            .where(
                JobRow.id == job_id,
                JobRow.attempt < max_attempts,
                or_(JobRow.state == QUEUED, and_(JobRow.state == RUNNING, JobRow.lease_until < at)),
            )
            .values(
                state=RUNNING,
                token=JobRow.token + 1,
                attempt=JobRow.attempt + 1,
                worker_id=worker_id,
                lease_until=at + timedelta(seconds=lease_seconds),
                started_at=case((JobRow.started_at.is_(None), at), else_=JobRow.started_at),
                phase=None,
                progress_done=None,
                progress_total=None,
            )
            .returning(JobRow.token, JobRow.attempt)
        ).one_or_none()
        if taken is None:
            return None
        job = session.get_one(JobRow, job_id)
        model = session.get_one(ModelRow, job.model_id)
        clean = session.get_one(DatasetRow, job.clean_dataset_id)
        triggered = session.get_one(DatasetRow, job.triggered_dataset_id) if job.triggered_dataset_id else None
        # A resource of an unfinished job cannot be deleted, so its bytes are there.
        assert model.sha256 is not None
        assert model.format is not None
        assert clean.sha256 is not None
        return Claim(
            job_id=job_id,
            tenant=job.tenant,
            kind=job.kind,
            token=taken.token,
            attempt=taken.attempt,
            max_attempts=max_attempts,
            architecture=model.architecture,
            input=model.input,
            spec=job.spec,
            model_sha256=model.sha256,
            model_format=model.format,
            model_name=model.name,
            clean_sha256=clean.sha256,
            triggered_sha256=triggered.sha256 if triggered else None,
            target_class=triggered.target_class if triggered else None,
        )


def heartbeat(
    sessions: sessionmaker[Session],
    claim: Claim,
    *,
    lease_seconds: float,
    progress: tuple[str, int, int] | None = None,
    now: datetime | None = None,
) -> HeartbeatAnswer:
    """Extend the lease, record (phase, done, total), and learn whether to go on."""
    with db.writing(sessions) as session:
        values: dict[str, Any] = {"lease_until": (now or db.now(session)) + timedelta(seconds=lease_seconds)}
        if progress is not None:
            phase, done, total = progress
            values |= {"phase": _storable(phase)[:100], "progress_done": done, "progress_total": total}
        state = session.scalar(update(JobRow).where(*_owned(claim)).values(**values).returning(JobRow.state))
    if state is None:
        return HeartbeatAnswer.LEASE_LOST
    return HeartbeatAnswer.CANCEL if state == CANCELLING else HeartbeatAnswer.CONTINUE


def succeed(
    sessions: sessionmaker[Session],
    claim: Claim,
    *,
    report_json: str,
    checkpoint_sha256: str | None = None,
    checkpoint_size: int | None = None,
    figures: Sequence[Figure] = (),
) -> bool:
    """Publish the result, in one transaction. False: the lease was lost, nothing was written.

    A preview has no checkpoint. A cancel that arrived after the work was done comes too late: the job has succeeded.
    """
    return _finish(
        sessions,
        claim,
        figures,
        state=SUCCEEDED,
        # A lone surrogate, from a hostile tensor's name, becomes the JSON escape that means the same.
        report=report_json.encode("utf-8", "backslashreplace").decode(),
        checkpoint_sha256=checkpoint_sha256,
        checkpoint_size=checkpoint_size,
        error_code=None,
        error_message=None,
    )


def fail(sessions: sessionmaker[Session], claim: Claim, code: str, message: str) -> bool:
    """End the job for a reason that another attempt would meet again. False: the lease was lost."""
    return _finish(sessions, claim, state=FAILED, error_code=code, error_message=_storable(message))


def finish_cancelled(sessions: sessionmaker[Session], claim: Claim) -> bool:
    """End the job because its client asked for it. False: the lease was lost."""
    return _finish(sessions, claim, state=CANCELLED, error_code=None, error_message=None)


def release(sessions: sessionmaker[Session], claim: Claim, code: str, message: str) -> bool:
    """Give the job back after a failure of the machinery; after the last attempt it has failed with this error.

    A job whose client asked for its cancellation is cancelled instead. False: the lease was lost.
    """
    if claim.attempt >= claim.max_attempts:
        return fail(sessions, claim, code, message)
    return _give_back(sessions, claim, error_code=code, error_message=_storable(message))


def hand_back(sessions: sessionmaker[Session], claim: Claim) -> bool:
    """Give the job back because its worker is told to stop: the attempt does not count. False: the lease was lost.

    A job whose client asked for its cancellation is cancelled instead.
    """
    return _give_back(sessions, claim, attempt=JobRow.attempt - 1)


def _give_back(sessions: sessionmaker[Session], claim: Claim, **values: Any) -> bool:  # noqa: ANN401
    with db.writing(sessions) as session:
        at = db.now(session)
        cancelling = JobRow.state == CANCELLING
        if "error_code" in values:
            values = {name: case((cancelling, None), else_=value) for name, value in values.items()}
        statement = (
            update(JobRow)
            .where(*_owned(claim))
            .values(
                state=case((cancelling, CANCELLED), else_=QUEUED),
                finished_at=case((cancelling, at), else_=None),
                worker_id=None,
                lease_until=None,
                sent_at=None,
                num_sent=0,
                **values,
            )
            .returning(JobRow.id)
        )
        return session.scalar(statement) is not None


def _storable(text: str) -> str:
    """The text without what no database can hold; parts of it may come from a hostile file."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()[:MAX_ERROR_MESSAGE]


def _owned(claim: Claim) -> tuple[Any, ...]:
    """The guard of every write: the row still belongs to this claim."""
    return JobRow.id == claim.job_id, JobRow.token == claim.token, JobRow.state.in_(OWNED_STATES)


def _finish(sessions: sessionmaker[Session], claim: Claim, figures: Sequence[Figure] = (), **values: object) -> bool:
    with db.writing(sessions) as session:
        statement = (
            update(JobRow)
            .where(*_owned(claim))
            .values(finished_at=db.now(session), worker_id=None, lease_until=None, **values)
            .returning(JobRow.id)
        )
        if session.scalar(statement) is None:
            return False
        for position, figure in enumerate(figures):
            session.add(
                JobFigureRow(
                    job_id=claim.job_id,
                    name=figure.name,
                    position=position,
                    tenant=claim.tenant,
                    title=_storable(figure.title)[:MAX_TITLE],
                    media_type=figure.media_type,
                    sha256=figure.sha256,
                    size=figure.size,
                )
            )
        return True
