"""Is the process alive, and can it serve?"""

from __future__ import annotations

from collections.abc import Callable

import structlog
from fastapi import APIRouter
from fastapi.responses import JSONResponse

from service import broker, db, problems, workers
from service.deps import Held, Resources
from service.schemas import Problem, Readiness, WorkerView
from service.tables import WorkerRow

router = APIRouter(tags=["health"])

log = structlog.get_logger()


@router.head("/healthz", include_in_schema=False)  # monitors ask so
@router.get("/healthz", summary="Is the process alive?")
def healthz() -> dict[str, str]:
    """Looks at nothing else."""
    return {"status": "alive"}


@router.head("/readyz", include_in_schema=False, response_model=None)
@router.get("/readyz", response_model=Readiness, responses={503: {"model": Problem}}, summary="Can it serve?")
def readyz(held: Held) -> Readiness | JSONResponse:
    """Whether the database answers and is migrated, and the broker answers; 503 with what does not.

    `workers` are those seen within a minute, with the protections that are active in the processes of their jobs; a
    service without one is ready all the same: it takes jobs, and they wait.
    """
    seen: list[WorkerRow] = []
    checks = {
        "database": _check(lambda: seen.extend(_database(held))),
        "broker": _check(lambda: broker.ping(held.celery)),
    }
    failed = [name for name, answer in checks.items() if answer != "ok"]
    if failed:
        log.warning("service.not_ready", checks=checks)
        return problems.problem(
            503,
            code="not_ready",
            title="Not ready",
            detail=f"not ready: {', '.join(failed)}",
            headers={"Retry-After": "5"},
            checks=checks,
        )
    return Readiness(checks=checks, workers=[WorkerView.of(row) for row in seen])


def _database(held: Resources) -> list[WorkerRow]:
    if not db.is_migrated(held.engine):
        raise NotMigratedError
    return workers.present(held.sessions)


class NotMigratedError(Exception):
    """The tables are not those of this release."""

    def __init__(self) -> None:
        super().__init__("not migrated to this release: run alembic upgrade head")


def _check(attempt: Callable[[], None]) -> str:
    try:
        attempt()
    except NotMigratedError as error:
        return str(error)
    except Exception as error:  # whatever it is, it does not work
        # The name alone: a driver's message can hold the address and the user of a server.
        log.warning("service.check_failed", error=f"{type(error).__name__}: {error}"[:300])
        return f"unreachable ({type(error).__name__})"
    return "ok"
