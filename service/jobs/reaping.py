"""What keeps a job from being lost: hints sent again, expired leases taken back, hopeless jobs ended."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import and_, func, literal, or_, select, update
from sqlalchemy.orm import Session, sessionmaker

from service import db
from service.tables import CANCELLED, CANCELLING, FAILED, QUEUED, RUNNING, JobRow

# A long queue is not a lost one: each further hint for the same job waits twice as long, up to 2**MAX_DOUBLINGS.
MAX_DOUBLINGS = 6
MAX_RESENT = 200

WORKER_LOST = "worker_lost"


def mark_sent(sessions: sessionmaker[Session], job_id: str) -> None:
    """Note that a hint for the job is with the broker."""
    with db.writing(sessions) as session:
        session.execute(
            update(JobRow)
            .where(JobRow.id == job_id, JobRow.state == QUEUED)
            .values(sent_at=db.now(session), num_sent=JobRow.num_sent + 1)
        )


def reap(
    sessions: sessionmaker[Session], *, resend_after_seconds: float, max_attempts: int, now: datetime | None = None
) -> list[str]:
    """Tidy the table, and return the jobs that need a hint: send it for each, then `mark_sent`.

    Cancellations whose worker died are finished; expired leases are queued again, or, out of attempts, have failed
    with the last error. Any number of reapers may run at once.
    """
    with db.writing(sessions) as session:
        at = now or db.now(session)
        _finish_cancellations(session, at)
        _dead_letter(session, at, max_attempts)
        _requeue(session, at)
    with sessions() as session:
        return _unsent(session, at, resend_after_seconds)


def _finish_cancellations(session: Session, at: datetime) -> None:
    session.execute(
        update(JobRow)
        .where(JobRow.state == CANCELLING, JobRow.lease_until < at)
        .values(state=CANCELLED, finished_at=at, worker_id=None, lease_until=None, error_code=None, error_message=None)
    )


def _dead_letter(session: Session, at: datetime, max_attempts: int) -> None:
    ended = {"state": FAILED, "finished_at": at, "worker_id": None, "lease_until": None}
    earlier = func.coalesce(literal(" An earlier attempt ended with: ") + JobRow.error_message, "")
    session.execute(
        update(JobRow)
        .where(JobRow.state == RUNNING, JobRow.lease_until < at, JobRow.attempt >= max_attempts)
        .values(
            **ended,
            error_code=WORKER_LOST,
            error_message=literal(
                f"The worker died or lost contact during the last of {max_attempts} attempts; submit the job again."
            )
            + earlier,
        )
    )
    # Given back after fewer attempts than were allowed then, and more than are allowed now.
    session.execute(
        update(JobRow)
        .where(JobRow.state == QUEUED, JobRow.attempt >= max_attempts)
        .values(
            **ended,
            error_code=func.coalesce(JobRow.error_code, WORKER_LOST),
            error_message=func.coalesce(JobRow.error_message, "The job is out of attempts; submit it again."),
        )
    )


def _requeue(session: Session, at: datetime) -> None:
    session.execute(
        update(JobRow)
        .where(JobRow.state == RUNNING, JobRow.lease_until < at)
        .values(
            state=QUEUED,
            worker_id=None,
            lease_until=None,
            sent_at=None,
            num_sent=0,
            error_code=func.coalesce(JobRow.error_code, WORKER_LOST),
            error_message=func.coalesce(JobRow.error_message, "The worker died or lost contact."),
        )
    )


def _unsent(session: Session, at: datetime, resend_after_seconds: float) -> list[str]:
    cutoff = at - timedelta(seconds=resend_after_seconds)
    rows = session.execute(
        select(JobRow.id, JobRow.sent_at, JobRow.num_sent)
        .where(JobRow.state == QUEUED, or_(JobRow.sent_at.is_(None), and_(JobRow.sent_at <= cutoff)))
        .order_by(JobRow.id)
    )
    waiting = [
        job_id
        for job_id, sent_at, num_sent in rows
        if sent_at is None
        or at - sent_at >= timedelta(seconds=resend_after_seconds * 2 ** min(max(num_sent - 1, 0), MAX_DOUBLINGS))
    ]
    return waiting[:MAX_RESENT]
