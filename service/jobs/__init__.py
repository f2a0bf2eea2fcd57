"""The life of a job: submit, cancel and read it; claim and finish it under a lease; reap what was lost.

Every function takes the session factory first and runs its own short transactions. The row decides who owns a job.
"""

from service.jobs.leases import (
    Claim,
    HeartbeatAnswer,
    claim,
    fail,
    finish_cancelled,
    hand_back,
    heartbeat,
    release,
    succeed,
)
from service.jobs.reaping import mark_sent, reap
from service.jobs.requests import Result, cancel, checkpoint, get, list_jobs, report, submit

__all__ = [
    "Claim",
    "HeartbeatAnswer",
    "Result",
    "cancel",
    "checkpoint",
    "claim",
    "fail",
    "finish_cancelled",
    "get",
    "hand_back",
    "heartbeat",
    "list_jobs",
    "mark_sent",
    "reap",
    "release",
    "report",
    "submit",
    "succeed",
]
