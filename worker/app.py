"""The Celery app: `python -m worker.app worker` and `python -m worker.app beat`, each setting with its reason."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import structlog
from celery import Celery, signals

from service import broker, logs
from service.settings import Settings
from worker import sandbox, supervisor, tasks
from worker.tasks import Station

SOFT_SHUTDOWN_SECONDS = 10.0
POOL_START_SECONDS = 60.0
PR_SET_DUMPABLE = 4

log = structlog.get_logger(__name__)

OPTIONS = {
    # One job at a time: a GPU is not shared, and the child uses all the cores that it may.
    # No talk among workers: they meet in the jobs table, and reconnecting with mingle or gossip has hung workers
    # (celery issues 8030 and 8091).
    "worker": "--pool prefork --concurrency 1 --loglevel WARNING --without-mingle --without-gossip --without-heartbeat",
    "beat": "--loglevel WARNING",
}


class StopFlag:
    """True once the worker's main process shuts down or has died: it holds the other end of a pipe."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def raise_(self) -> None:
        """Raise the flag, or, in a pool process, let go of the end that is not ours. Idempotent."""
        descriptor, self._write = self._write, -1
        if descriptor >= 0:
            os.close(descriptor)

    def is_raised(self) -> bool:
        """Whether it is raised: the pipe has no writer any more."""
        ready, _, _ = select.select([self._read], [], [], 0)
        return bool(ready)


def make_app(settings: Settings, protections: Sequence[str] = ()) -> Celery:
    """Return the app that works: the producer's, with tasks, a schedule and a worker's settings.

    `protections` are those that `check_protections` found, for the worker's row.
    """
    celery = broker.make_celery(settings)
    celery.conf.update(
        # A message is gone when its job has ended, not when it has begun. The row decides all the same.
        task_acks_late=True,
        # A worker that dies leaves an expired lease, and the reaper counts attempts; Celery's own redelivery of a task
        # that kills its worker would never end.
        task_reject_on_worker_lost=False,
        # A message held back by a busy worker is one that an idle worker does not see.
        worker_prefetch_multiplier=1,
        task_queues={broker.QUEUE_JOBS: {}, broker.QUEUE_UPKEEP: {}},
        # Of the two ways to stop, the cold one too gives the running job time to be handed back.
        worker_soft_shutdown_timeout=SOFT_SHUTDOWN_SECONDS,
        # A broker that restarts must not end the job in hand, nor, however long it takes, the worker.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry=True,
        broker_connection_max_retries=None,
        # Nobody sends commands to workers; what is not listening cannot be told to shut down by a stranger.
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        # Log lines are ours to shape, and a print stays a print.
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        # A machine at full load starts a process late; Celery's four seconds would then kill it, again and again.
        worker_proc_alive_timeout=POOL_START_SECONDS,
        # The schedule is one interval, so there is nothing to keep in a file.
        beat_scheduler="celery.beat:Scheduler",
        beat_schedule={
            "reap": {
                "task": broker.TASK_REAP,
                "schedule": settings.reap_seconds,
                # The next one does the same: what a busy worker did not get to in time is dropped.
                "options": {"queue": broker.QUEUE_UPKEEP, "expires": settings.reap_seconds},
            }
        },
    )
    _connect(celery, settings, protections)
    return celery


def _connect(celery: Celery, settings: Settings, protections: Sequence[str]) -> None:
    """Bind tasks and the worker's life to one station a process, made after the fork."""
    stop = StopFlag()
    stations: dict[int, Station] = {}

    def station() -> Station:
        if os.getpid() not in stations:
            stations.clear()
            stations[os.getpid()] = Station(celery, settings, stop.is_raised, protections=protections)
        return stations[os.getpid()]

    def on_worker_init(**_: object) -> None:
        _hide_memory()

    def on_process_init(**_: object) -> None:
        stop.raise_()
        station().warm()

    def on_ready(**_: object) -> None:
        log.info("worker_ready", pid=os.getpid())

    def on_shutting_down(**_: object) -> None:
        log.info("worker_stopping", pid=os.getpid())
        stop.raise_()

    def on_process_shutdown(**_: object) -> None:
        if os.getpid() in stations:
            stations.pop(os.getpid()).close()

    tasks.register(celery, station)
    signals.worker_init.connect(on_worker_init, weak=False)
    signals.worker_process_init.connect(on_process_init, weak=False)
    signals.worker_ready.connect(on_ready, weak=False)
    signals.worker_shutting_down.connect(on_shutting_down, weak=False)
    signals.worker_process_shutdown.connect(on_process_shutdown, weak=False)


def _hide_memory() -> None:
    """Keep a child, which runs as the same user, from reading our environment and memory in /proc (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def check_protections(settings: Settings) -> tuple[str, ...]:
    """Say in the log what a job's process gives up on this machine, and return it.

    Raises:
        SystemExit: a protection that the operator requires is unknown, or is not active here.
    """
    with tempfile.TemporaryDirectory(prefix="probe-", dir=settings.data_dir) as folder:
        active = supervisor.probe(Path(folder))
    missing = [name for name in sandbox.PROTECTIONS if name not in active]
    log.info("worker_protections", active=active, missing=missing)
    required = set(settings.require_protections)
    if unknown := required - set(sandbox.PROTECTIONS):
        raise SystemExit(
            f"LUSTRATE_REQUIRE_PROTECTIONS names {', '.join(sorted(unknown))}; there are "
            f"{', '.join(sandbox.PROTECTIONS)}"
        )
    if lacking := required - set(active):
        raise SystemExit(f"LUSTRATE_REQUIRE_PROTECTIONS asks for {', '.join(sorted(lacking))}: not active here")
    return active


def main() -> None:
    """Run one of the two processes until it is told to stop."""
    which = sys.argv[1] if len(sys.argv) == 2 else ""
    if which not in OPTIONS:
        raise SystemExit("usage: python -m worker.app worker|beat")
    logs.configure()
    settings = Settings.from_env()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    protections = check_protections(settings) if which == "worker" else ()
    with contextlib.suppress(KeyboardInterrupt):
        make_app(settings, protections).start(["--quiet", which, *OPTIONS[which].split()])


if __name__ == "__main__":
    main()
