"""The HTTP application: what it holds open, its routers and its middleware."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

import structlog
from fastapi import FastAPI

from service import broker, db, logs, middleware, problems, uploads
from service.deps import Resources
from service.routes import datasets, health, jobs, models
from service.settings import Settings, is_loopback

DESCRIPTION = """Takes the backdoor out of a neural network: declare and upload a suspect checkpoint and a small clean
set, start a job, poll it, read the report and download the sanitized checkpoint.

Every error is `application/problem+json` (RFC 9457) with a stable `code`. Files travel as raw bodies (`curl -T`).
This page loads its script and style from a public CDN; `/openapi.json` is the same without a network.
"""

log = structlog.get_logger()


def create_app(settings: Settings) -> FastAPI:
    """The application for these settings; it connects to nothing before its first request."""
    engine = db.make_engine(settings)
    held = Resources(
        settings=settings, engine=engine, sessions=db.make_sessions(engine), celery=broker.make_celery(settings)
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        settings.staging_dir.mkdir(parents=True, exist_ok=True)
        removed = uploads.clean_staging(settings.staging_dir)
        if not is_loopback(settings.host):
            log.warning("service.open_to_other_machines", host=settings.host, api_keys=False)
        log.info("service.started", host=settings.host, port=settings.port, stale_uploads_removed=removed)
        yield
        held.celery.close()
        engine.dispose()

    app = FastAPI(
        title="Lustrate",
        version=_version(),
        description=DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,  # a redirect is not an answer to a PUT of two gigabytes
    )
    app.state.resources = held
    routers = (models.router, datasets.router, jobs.previews, jobs.router, health.router)
    for router in routers:
        app.include_router(router)
    problems.install(app, [route for router in routers for route in router.routes])
    # The last one added is the outermost.
    app.add_middleware(middleware.BodyLimit)
    app.add_middleware(middleware.HostGuard, settings=settings)
    app.add_middleware(middleware.RequestContext)
    return app


def create_from_env() -> FastAPI:
    """For `uvicorn --factory service.app:create_from_env`."""
    logs.configure()
    return create_app(Settings.from_env())


def _version() -> str:
    try:
        return version("lustrate")
    except PackageNotFoundError:  # run from a checkout that was not installed
        return "0+unknown"
