"""Jobs: submit, poll, cancel, and fetch the report and the sanitized checkpoint."""

from __future__ import annotations

import json
import re

import structlog
from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from service import blobs, broker, downloads, ids, jobs, pages
from service.deps import Held, Paging, Resources, Tenant
from service.errors import NotFoundError
from service.schemas import (
    PROBLEMS,
    FigureView,
    JobCreate,
    JobState,
    JobView,
    Page,
    Preview,
    PreviewCreate,
    Report,
    SanitizeSpec,
    plain,
)
from service.tables import OPEN_STATES, PREVIEW, JobRow

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=PROBLEMS)
# A preview is asked of a data set, and is a job from then on.
previews = APIRouter(prefix="/v1/datasets", tags=["datasets"], responses=PROBLEMS)

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
        needs_triggered=body.spec.guided_by_trigger_samples,
    )
    return _accepted(job, held, response)


@previews.post("/{dataset_id}/preview", status_code=202, summary="Look at a clean set before a job")
def preview(dataset_id: str, body: PreviewCreate, held: Held, tenant: Tenant, response: Response) -> JobView:
    """Counts, duplicates, wrong sizes, and how the model takes the images; nothing is pruned or written.

    Poll `Location`; the job's report is the preview. What a real job would refuse is listed in its `findings`.
    """
    job = jobs.submit(
        held.sessions,
        tenant,
        model_id=body.model_id,
        clean_dataset_id=dataset_id,
        triggered_dataset_id=None,
        spec=plain(SanitizeSpec()),
        needs_triggered=False,
        kind=PREVIEW,
    )
    return _accepted(job, held, response)


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


_PAGE = {"content": {"text/html": {}}, "description": "The report; for a browser, which asks for it, as a page."}


@router.get("/{job_id}/report", response_model=Report | Preview, responses={200: _PAGE}, summary="Read the report")
def report(job_id: str, request: Request, held: Held, tenant: Tenant) -> Response:
    """The evidence, exactly as the worker wrote it; of a preview, what it found, which has no page."""
    is_preview = jobs.get(held.sessions, tenant, job_id).kind == PREVIEW
    if not is_preview and _wants_page(request.headers.get("accept", "")):
        return _page(held, tenant, job_id)
    return Response(
        jobs.report(held.sessions, tenant, job_id), media_type="application/json", headers={"Vary": "Accept"}
    )


@router.get(
    "/{job_id}/report.html", response_class=HTMLResponse, summary="Read the report as a page, whatever Accept says"
)
def report_page(job_id: str, held: Held, tenant: Tenant) -> Response:
    """For people: self-contained, to read and to keep."""
    return _page(held, tenant, job_id)


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


@router.get("/{job_id}/figures", summary="List the report's figures")
def list_figures(job_id: str, held: Held, tenant: Tenant) -> Page[FigureView]:
    """In the report's order, all at once: a report has a few."""
    rows = jobs.figures(held.sessions, tenant, job_id)
    return Page(items=[FigureView.of(row) for row in rows], next_cursor=None)


_PICTURE = {"content": {"image/png": {}}, "description": "The picture."}


@router.head("/{job_id}/figures/{name}", include_in_schema=False)
@router.get(
    "/{job_id}/figures/{name}",
    response_class=Response,
    responses={200: _PICTURE, 206: _PICTURE | {"description": "The range of it."}, 304: {"description": "Unchanged."}},
    summary="Download a figure",
)
def figure(job_id: str, name: str, request: Request, held: Held, tenant: Tenant) -> Response:
    """A PNG file, with a strong ETag; the report lists the names."""
    row = jobs.figure(held.sessions, tenant, job_id, name)
    return downloads.respond(
        held.sessions,
        tenant,
        sha256=row.sha256,
        size=row.size,
        filename=f"{row.name}.png",
        media_type=row.media_type,
        inline=True,
        method=request.method,
        request_headers=request.headers,
    )


def _page(held: Resources, tenant: str, job_id: str) -> Response:
    text = jobs.report(held.sessions, tenant, job_id)
    job = jobs.get(held.sessions, tenant, job_id)
    if job.kind == PREVIEW:
        raise NotFoundError("a preview has no page; read its report as JSON", code="page_not_found")
    pictures = [
        pages.Picture(
            title=row.title,
            media_type=row.media_type,
            data=b"".join(blobs.read(held.sessions, tenant, row.sha256)),
        )
        for row in jobs.figures(held.sessions, tenant, job_id)
    ]
    page = pages.report_page(
        json.loads(text),
        job_id=job.id,
        model_name=jobs.checkpoint(held.sessions, tenant, job_id).model_name,
        finished=f"{job.finished_at:%Y-%m-%d %H:%M} UTC",
        pictures=pictures,
    )
    headers = {
        "Content-Security-Policy": page.content_security_policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "private, no-cache",
        "Vary": "Accept",
    }
    return HTMLResponse(page.html, headers=headers)


def _wants_page(accept: str) -> bool:
    """Whether the client, as browsers do, names HTML and likes it better than JSON."""
    liking = {"text/html": 0.0, "application/json": 0.0}
    for item in accept.split(","):
        media_type, _, parameters = item.strip().lower().partition(";")
        quality = re.search(r"(?:^|;)\s*q=([0-9.]{1,5})\s*(?:;|$)", parameters)
        if media_type.strip() in liking:
            try:
                liking[media_type.strip()] = float(quality[1]) if quality else 1.0
            except ValueError:
                continue
    return liking["text/html"] > liking["application/json"]


def _accepted(job: JobRow, held: Resources, response: Response) -> JobView:
    _hint(held, job.id)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    response.headers["Retry-After"] = POLL_SECONDS
    return JobView.of(job)


def _hint(held: Resources, job_id: str) -> None:
    """Wake a worker. The job is committed, so whatever goes wrong here the client has its 202 and the reaper sends."""
    try:
        broker.send(held.celery, job_id)
        jobs.mark_sent(held.sessions, job_id)
    except Exception as error:  # any broker, any transport: none of it undoes the commit
        log.warning("job.hint_failed", job_id=job_id, error=f"{type(error).__name__}: {error}"[:300])
