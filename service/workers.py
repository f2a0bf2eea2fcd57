"""Which workers are alive, and what the processes of their jobs give up: each keeps a row of its own fresh."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session, sessionmaker

from service import db
from service.tables import WorkerRow

RECORD_SECONDS = 10.0
# Five writes in a row may be late or lost before a worker is taken for dead; nothing but what is shown depends on it.
PRESENT_SECONDS = 60.0
# What a killed worker left is removed by the next one that writes.
FORGET_SECONDS = 3600.0


def record(
    sessions: sessionmaker[Session], worker_id: str, protections: Sequence[str], *, now: datetime | None = None
) -> None:
    """Note that the worker is alive, with the protections that are active in the processes of its jobs."""
    with db.writing(sessions) as session:
        at = now or db.now(session)
        values = {"seen_at": at, "protections": list(protections)}
        seen = session.scalar(
            update(WorkerRow).where(WorkerRow.id == worker_id).values(**values).returning(WorkerRow.id)
        )
        if seen is None:
            session.add(WorkerRow(id=worker_id, started_at=at, **values))
        session.execute(delete(WorkerRow).where(WorkerRow.seen_at < at - timedelta(seconds=FORGET_SECONDS)))


def forget(sessions: sessionmaker[Session], worker_id: str) -> None:
    """Remove the row of a worker that stops."""
    with db.writing(sessions) as session:
        session.execute(delete(WorkerRow).where(WorkerRow.id == worker_id))


def present(sessions: sessionmaker[Session], *, now: datetime | None = None) -> list[WorkerRow]:
    """The workers seen lately, the oldest first."""
    with sessions() as session:
        since = (now or db.now(session)) - timedelta(seconds=PRESENT_SECONDS)
        rows = select(WorkerRow).where(WorkerRow.seen_at >= since).order_by(WorkerRow.started_at, WorkerRow.id)
        return list(session.scalars(rows))
