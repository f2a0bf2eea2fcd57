"""Jobs: submit, poll, cancel, and fetch the report and the sanitized checkpoint."""

from __future__ import annotations

import structlog
from fastapi import APIRouter, Request, Response

from service import broker, downloads, ids, jobs
from service.deps import Held, Paging, Resources, Tenant
from service.schemas import PROBLEMS, JobCreate, JobState, JobView, Page, Report, plain
from service.tables import OPEN_STATES

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=PROBLEMS)

POLL_SECONDS = "1"

log = structlog.get_logger()


@router.post("", status_code=202, summary="Start a job")
def submit(body: JobCreate, held: Held, tenant: Tenant, response: Response) -> JobView:
    """Poll `Location` until `state` is succeeded, failed or cancelled."""
    job = jobs.submit(
        held.sessions,
        tenant,
        model_id=body.model_id,
        clean_dataset_id=body.clean_dataset_id,
        triggered_dataset_id=body.triggered_dataset_id,
        spec=plain(body.spec),
    )
    _hint(held, job.id)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    response.headers["Retry-After"] = POLL_SECONDS
    return JobView.of(job)


@router.get("", summary="List jobs, newest first")
def list_jobs(held: Held, tenant: Tenant, paging: Paging, state: JobState | None = None) -> Page[JobView]:
    """Follow `next_cursor` until it is null."""
    rows = jobs.list_jobs(held.sessions, tenant, limit=paging.limit + 1, before=paging.before(ids.JOB), state=state)
    return paging.page(rows, JobView.of)


@router.get("/{job_id}", summary="Read a job")
def read(job_id: str, held: Held, tenant: Tenant, response: Response) -> JobView:
    """State, phase, progress and, where it failed, why."""
    job = jobs.get(held.sessions, tenant, job_id)
    if job.state in OPEN_STATES:
        response.headers["Retry-After"] = POLL_SECONDS
    return JobView.of(job)


@router.post("/{job_id}/cancel", status_code=202, summary="Cancel a job")
def cancel(job_id: str, held: Held, tenant: Tenant) -> JobView:
    """A waiting job is cancelled at once, a running one within seconds; a finished one is refused."""
    return JobView.of(jobs.cancel(held.sessions, tenant, job_id))


@router.get("/{job_id}/report", response_model=Report, summary="Read the report")
def report(job_id: str, held: Held, tenant: Tenant) -> Response:
    """The evidence, exactly as the worker wrote it."""
    return Response(jobs.report(held.sessions, tenant, job_id), media_type="application/json")


_FILE = {"content": {"application/octet-stream": {}}, "description": "The file."}


@router.head("/{job_id}/checkpoint", include_in_schema=False)
@router.get(
    "/{job_id}/checkpoint",
    response_class=Response,
    responses={200: _FILE, 206: _FILE | {"description": "The range of it."}, 304: {"description": "Unchanged."}},
    summary="Download the sanitized checkpoint",
)
def checkpoint(job_id: str, request: Request, held: Held, tenant: Tenant) -> Response:
    """In the format it came in; a strong ETag, one Range, and its SHA-256 in Repr-Digest."""
    result = jobs.checkpoint(held.sessions, tenant, job_id)
    return downloads.respond(
        held.sessions,
        tenant,
        sha256=result.sha256,
        size=result.size,
        filename=downloads.checkpoint_filename(result.model_name, result.model_id, result.format),
        method=request.method,
        request_headers=request.headers,
    )


def _hint(held: Resources, job_id: str) -> None:
    """Wake a worker. The job is committed, so whatever goes wrong here the client has its 202 and the reaper sends."""
    try:
        broker.send(held.celery, job_id)
        jobs.mark_sent(held.sessions, job_id)
    except Exception as error:  # any broker, any transport: none of it undoes the commit
        log.warning("job.hint_failed", job_id=job_id, error=f"{type(error).__name__}: {error}"[:300])
