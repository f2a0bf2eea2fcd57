"""Says that this worker is alive, also while a job keeps its main thread: a thread that writes a row now and then.

It runs in the process that runs jobs, which starts others by exec and never forks, so no lock of it is copied.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from service import workers

JOIN_SECONDS = 5.0

log = structlog.get_logger(__name__)


class Presence:
    """One worker's row, kept fresh from `start` to `close`."""

    def __init__(
        self,
        sessions: sessionmaker[Session],
        worker_id: str,
        protections: Sequence[str],
        *,
        seconds: float = workers.RECORD_SECONDS,
    ) -> None:
        self._sessions = sessions
        self._worker_id = worker_id
        self._protections = tuple(protections)
        self._seconds = seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def start(self) -> None:
        """Write the row soon, and again and again. Idempotent."""
        if self._thread.ident is None:
            self._thread.start()

    def close(self) -> None:
        """Remove the row; of a worker that is killed it goes stale instead."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join(JOIN_SECONDS)
            with contextlib.suppress(SQLAlchemyError):
                workers.forget(self._sessions, self._worker_id)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                workers.record(self._sessions, self._worker_id, self._protections)
            except SQLAlchemyError as error:
                # Jobs do not depend on it, so a database that is away is no reason to stop.
                log.warning("presence_not_recorded", error=type(error).__name__)
            self._stopped.wait(self._seconds)
