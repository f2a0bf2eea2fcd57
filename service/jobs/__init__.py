"""The life of a job: submit, cancel and read it; claim and finish it under a lease; reap what was lost.

Every function takes the session factory first and runs its own short transactions. The row decides who owns a job.
"""

from service.jobs.leases import (
    Claim,
    Figure,
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
from service.jobs.requests import (
    FIGURE_NAME,
    Result,
    cancel,
    checkpoint,
    figure,
    figures,
    get,
    list_jobs,
    report,
    submit,
)

__all__ = [
    "FIGURE_NAME",
    "Claim",
    "Figure",
    "HeartbeatAnswer",
    "Result",
    "cancel",
    "checkpoint",
    "claim",
    "fail",
    "figure",
    "figures",
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
