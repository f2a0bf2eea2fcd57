"""Celery as both sides see it: task names, queue names, and a hint sent by name."""

from __future__ import annotations

from typing import Any

from celery import Celery

from service.settings import Settings

TASK_SANITIZE = "lustrate.sanitize"
TASK_REAP = "lustrate.reap"
QUEUE_JOBS = "lustrate.jobs"
QUEUE_UPKEEP = "lustrate.upkeep"

# What a hint may cost a client's request when the broker is away: the reaper sends it again anyway.
CONNECT_SECONDS = 3
# Beyond a job's deadline: staging its files before, publishing its results after.
VISIBILITY_MARGIN_SECONDS = 1800


def make_celery(settings: Settings) -> Celery:
    """A Celery application that can send; the worker adds its tasks and its own settings to it."""
    celery = Celery("lustrate", broker=settings.broker_url, set_as_current=False)
    celery.conf.update(
        accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        # The jobs table holds the results, so there is no second place that could disagree with it.
        result_backend=None,
        task_ignore_result=True,
        task_default_queue=QUEUE_JOBS,
        task_routes={TASK_SANITIZE: {"queue": QUEUE_JOBS}, TASK_REAP: {"queue": QUEUE_UPKEEP}},
        enable_utc=True,
        timezone="UTC",
        broker_connection_timeout=CONNECT_SECONDS,
        broker_connection_retry_on_startup=True,
        broker_transport_options=_transport_options(settings),
    )
    return celery


def send(celery: Celery, job_id: str) -> None:
    """Hint that a job waits. Call it after the commit.

    Raises:
        kombu.exceptions.OperationalError: the broker is away; the job stays queued, and the reaper sends again.
    """
    celery.send_task(TASK_SANITIZE, args=[job_id], queue=QUEUE_JOBS, retry=False, ignore_result=True)


def ping(celery: Celery) -> None:
    """Reach the broker, or raise what went wrong."""
    with celery.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=CONNECT_SECONDS)
        connection.default_channel.close()


def _transport_options(settings: Settings) -> dict[str, Any]:
    scheme = settings.broker_url.split(":", 1)[0]
    if scheme == "filesystem":
        messages, control = settings.queue_dir / "messages", settings.queue_dir / "control"
        for folder in (messages, control):
            folder.mkdir(parents=True, exist_ok=True)
        # One folder for both directions: producers and workers of one machine meet in it.
        return {"data_folder_in": str(messages), "data_folder_out": str(messages), "control_folder": str(control)}
    if scheme in {"redis", "rediss", "redis+socket"}:
        return {
            # Above the longest job, or Redis hands a running job's message to a second worker (whose claim would fail).
            "visibility_timeout": int(settings.job_deadline_seconds) + VISIBILITY_MARGIN_SECONDS,
            # New in kombu 5.7: look for messages of dead workers every 10 s, not every 100 s. Older ones ignore it.
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
            "socket_connect_timeout": CONNECT_SECONDS,
            "socket_keepalive": True,
            # A Redis that accepts and never answers must not hold a request for ever. A worker's blocking reads
            # last one second, so this is no limit to them.
            "socket_timeout": 3 * CONNECT_SECONDS,
            # One more try when a connection is refused, not the default's six seconds of them.
            "max_retries": 1,
            "interval_start": 0.1,
            "interval_step": 0.1,
        }
    return {}
