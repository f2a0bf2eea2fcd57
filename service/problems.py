"""The one way an error leaves the service: application/problem+json with a stable code (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import sqlalchemy.exc
import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Match, Route

from service import field_errors
from service.errors import ServiceError, UnavailableError, UnsupportedMediaTypeError

MEDIA_TYPE = "application/problem+json"
MAX_TEXT = 300

log = structlog.get_logger()

_CODES = {
    # FastAPI's answer to a body on which the JSON parser gives up in another way than by a syntax error.
    400: (
        "bad_request",
        "the body cannot be read as JSON: it is not UTF-8, nests too deeply or holds a number of too many digits",
    ),
    404: ("not_found", "there is nothing at this path; /docs lists what there is"),
    405: ("method_not_allowed", "this path does not take this method; the Allow header lists those it takes"),
}


def problem(
    status: int,
    *,
    code: str,
    title: str,
    detail: str,
    headers: Mapping[str, str] | None = None,
    **extra: Any,  # noqa: ANN401 - members of a JSON document
) -> JSONResponse:
    """A problem document as a response."""
    content = {"type": f"urn:lustrate:problem:{code}", "title": title, "status": status, "detail": detail, "code": code}
    return JSONResponse(content | extra, status, dict(headers or {}), media_type=MEDIA_TYPE)


def of_service_error(error: ServiceError) -> JSONResponse:
    """The document of an error that knows its own."""
    return problem(
        error.status, code=error.code, title=error.title, detail=error.detail, headers=error.headers, **error.extra()
    )


def internal_error() -> JSONResponse:
    """What a client sees of a bug: that it was one. The log has the rest, under the request's id."""
    return problem(
        500,
        code="internal_error",
        title="Internal error",
        detail="something went wrong in the service; its log has it under the X-Request-ID of this response",
    )


def install(app: FastAPI, routes: Sequence[BaseRoute] = ()) -> None:
    """Make every error of this application a problem document. `routes` are asked what a path takes."""

    @app.exception_handler(ServiceError)
    async def _on_service_error(_request: Request, error: ServiceError) -> JSONResponse:
        return of_service_error(error)

    @app.exception_handler(RequestValidationError)
    async def _on_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return _of_validation_error(request, error)

    @app.exception_handler(HTTPException)
    async def _on_http_error(request: Request, error: HTTPException) -> JSONResponse:
        title = HTTPStatus(error.status_code).phrase
        code, detail = _CODES.get(error.status_code, (title.lower().replace(" ", "_"), str(error.detail)))
        headers = dict(error.headers or {})
        # Starlette names the methods of the first route at this path, and each method is a route here.
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and (allowed := _methods(routes, request)):
            headers["Allow"] = ", ".join(allowed)
        return problem(error.status_code, code=code, title=title, detail=detail, headers=headers)

    @app.exception_handler(ClientDisconnect)
    async def _on_client_gone(_request: Request, _error: ClientDisconnect) -> JSONResponse:
        # Nobody reads this answer; without it the log would call a broken connection a bug of ours.
        log.info("request.client_gone")
        return problem(400, code="client_disconnected", title="Bad request", detail="the body broke off; send it again")

    @app.exception_handler(sqlalchemy.exc.OperationalError)
    @app.exception_handler(sqlalchemy.exc.TimeoutError)
    async def _on_database_away(_request: Request, error: Exception) -> JSONResponse:
        log.error("database.unavailable", error=str(error.__cause__ or error)[:MAX_TEXT])
        return of_service_error(
            UnavailableError(
                "the database does not answer; try again shortly",
                code="database_unavailable",
                headers={"Retry-After": "5"},
            )
        )


def _methods(routes: Sequence[BaseRoute], request: Request) -> list[str]:
    """What the request's path takes."""
    found = [
        route.methods or set()
        for route in routes
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE
    ]
    return sorted(set().union(*found))


def _of_validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
    found = error.errors()
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if found and tuple(found[0]["loc"]) == ("body",) and not media_type.endswith("json"):
        refusal = UnsupportedMediaTypeError(
            "the body must be JSON: send it with the header 'Content-Type: application/json'", code="json_required"
        )
        return of_service_error(refusal)
    errors = field_errors.explain(found)
    if errors and errors[0]["field"] == "body" and errors[0]["type"] == "missing":
        errors[0]["message"] = "there is none; send a JSON object, and /docs lists its fields"
    first = errors[0] if errors else {"field": "request", "message": "is invalid"}
    return problem(
        422,
        code="invalid_request",
        title="Invalid request",
        detail=f"{first['field']}: {first['message']}",
        errors=errors,
    )
