"""The tasks: a few lines each, an id and nothing else. Importing this starts nothing and imports no torch."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence

import structlog
from celery import Celery
from kombu.exceptions import OperationalError
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from service import blobs, broker, db, jobs
from service.settings import Settings
from worker import runs
from worker.presence import Presence
from worker.runs import Ending
from worker.scratch import Scratch
from worker.supervisor import Supervisor

# A hint that was sent so long ago and not followed is sent again; doubled hints cost one query each.
RESEND_SECONDS = 60.0
GARBAGE_SECONDS = 60.0

log = structlog.get_logger(__name__)


class Station:
    """What one worker process holds: the database, a scratch folder, and a supervisor with its warm child."""

    def __init__(
        self,
        celery: Celery,
        settings: Settings,
        should_stop: Callable[[], bool],
        *,
        protections: Sequence[str] = (),
    ) -> None:
        self._celery = celery
        self._settings = settings
        self._should_stop = should_stop
        self._worker_id = f"{socket.gethostname()}:{os.getpid()}"
        self._engine: Engine = db.make_engine(settings)
        self._sessions: sessionmaker[Session] = db.make_sessions(self._engine)
        self._scratch = Scratch(settings.data_dir / "work")
        self._supervisor = Supervisor(self._scratch.path)
        self._presence = Presence(self._sessions, self._worker_id, protections)
        self._garbage_due = 0.0

    def warm(self) -> None:
        """Say that this worker is alive, and have a child ready."""
        self._presence.start()
        self._supervisor.warm()

    def sanitize(self, job_id: str) -> None:
        """Make one attempt at a job."""
        ending = runs.run(
            self._sessions,
            self._settings,
            self._supervisor,
            job_id,
            self._worker_id,
            scratch=self._scratch.path,
            should_stop=self._should_stop,
        )
        if ending is Ending.GIVEN_BACK:
            self._send(job_id)
        if not self._should_stop():
            self._supervisor.warm()  # between two jobs, so that no more than one process holds torch while one computes

    def reap(self) -> None:
        """Send hints again, take back expired leases, remove bytes that nothing refers to."""
        for job_id in jobs.reap(
            self._sessions, resend_after_seconds=RESEND_SECONDS, max_attempts=self._settings.max_attempts
        ):
            self._send(job_id)
        if time.monotonic() >= self._garbage_due:
            self._garbage_due = time.monotonic() + GARBAGE_SECONDS
            blobs.collect_garbage(self._sessions)

    def close(self) -> None:
        """Say nothing more, end the spare child and remove the folder."""
        self._presence.close()
        self._supervisor.close()
        self._scratch.close()
        self._engine.dispose()

    def _send(self, job_id: str) -> None:
        try:
            broker.send(self._celery, job_id)
        except OperationalError:
            log.warning("hint_not_sent", job_id=job_id)  # the reaper tries again
            return
        jobs.mark_sent(self._sessions, job_id)


def register(celery: Celery, station: Callable[[], Station]) -> None:
    """Add the tasks to the app. `station` returns this process's own."""

    @celery.task(name=broker.TASK_SANITIZE)  # type: ignore[untyped-decorator]
    def sanitize(job_id: str) -> None:
        station().sanitize(job_id)

    @celery.task(name=broker.TASK_REAP)  # type: ignore[untyped-decorator]
    def reap() -> None:
        station().reap()
