"""What happens to every request before a route sees it: an id and a log line, the host check, the body limit."""

from __future__ import annotations

import re
import secrets
import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import problems
from service.errors import BadRequestError, BodyTooLargeError, ServiceError
from service.settings import Settings, is_loopback
from service.tables import LOCAL_TENANT

# JSON bodies only; content has limits of its own.
MAX_JSON_BYTES = 1024 * 1024
_ADVICE = "send a shorter JSON body, and files to links.content"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,100}")
_CONTENT_PATH = re.compile(r"/v1/(models|datasets)/[^/]+/content")
_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}

log = structlog.get_logger()


class MisdirectedError(ServiceError):
    """The Host header names another site: a web page may have pointed its own name at this machine."""

    status, code, title = 421, "host_not_allowed", "Misdirected request"


class RemoteError(ServiceError):
    """Somebody bound the server to an address that the settings do not allow."""

    status, code, title = 403, "remote_not_allowed", "Remote access not allowed"


class CrossSiteError(ServiceError):
    """A browser sends this for another site."""

    status, code, title = 403, "cross_site_request", "Cross-site request"


class RequestContext:
    """Outermost: gives the request its id, logs its end, and turns a bug into a 500 without a traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        offered = Headers(scope=scope).get("x-request-id", "")
        request_id = offered if _REQUEST_ID.fullmatch(offered) else secrets.token_hex(16)
        # A percent-encoded control character would reach the terminal of whoever reads the log.
        path = scope["path"] if scope["path"].isprintable() else ascii(scope["path"])
        started, status = time.perf_counter(), 0

        async def _send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id, tenant=LOCAL_TENANT)
        try:
            await self.app(scope, receive, _send)
        except Exception:
            log.exception("request.failed", method=scope["method"], path=path)
            if status:
                raise  # the response has begun: only breaking the connection tells the client
            await problems.internal_error()(scope, receive, _send)
        finally:
            seconds = round(time.perf_counter() - started, 4)
            log.info("request.finished", method=scope["method"], path=path, status=status, seconds=seconds)
            structlog.contextvars.clear_contextvars()


class HostGuard:
    """Refuses names that are not ours, so that no web page can reach a loopback service by DNS rebinding."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.allow_remote = settings.allow_remote
        self.allowed: set[str] | None = None
        if is_loopback(settings.host) or settings.allowed_hosts:
            self.allowed = {"localhost", "127.0.0.1", "[::1]", settings.host.lower(), *settings.allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self.app(scope, receive, send)
        else:
            await problems.of_service_error(refusal)(scope, receive, send)

    def _refusal(self, scope: Scope) -> ServiceError | None:
        headers = Headers(scope=scope)
        address, port = scope.get("server") or ("localhost", None)
        # `uvicorn --host 0.0.0.0` does not pass by the settings. A Unix socket has no port.
        if port is not None and not self.allow_remote and not is_loopback(address):
            return RemoteError("set LUSTRATE_ALLOW_REMOTE=1 where a proxy or firewall decides who may connect")
        host = re.sub(r":\d*$", "", headers.get("host", "").lower())
        if self.allowed is not None and host not in self.allowed:
            return MisdirectedError("this Host is not served here; LUSTRATE_ALLOWED_HOSTS lists further names")
        if headers.get("sec-fetch-site") == "cross-site" and scope["method"] not in _SAFE_METHODS:
            return CrossSiteError("a browser may not change anything here for another site")
        return None


class BodyLimit:
    """Reads a JSON body up to the limit before any route does; content is left to its route, which streams it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse its body."""
        if scope["type"] != "http" or (scope["method"] == "PUT" and _CONTENT_PATH.fullmatch(scope["path"])):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if "content-length" not in headers and "transfer-encoding" not in headers:
            await self.app(scope, receive, send)
            return
        try:
            body = await _read_limited(headers, receive)
        except ServiceError as refusal:
            await problems.of_service_error(refusal)(scope, receive, send)
            return
        if body is None:
            return
        replayed = False

        async def _receive() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, _receive, send)


async def _read_limited(headers: Headers, receive: Receive) -> bytes | None:
    """The whole body, or None when the client went away.

    Raises:
        BodyTooLargeError: it is longer than MAX_JSON_BYTES.
        BadRequestError: its declared length is no number.
    """
    declared = headers.get("content-length", "0")
    if not declared.isascii() or not declared.isdigit():
        raise BadRequestError("Content-Length must be a number", code="invalid_content_length")
    if int(declared) > MAX_JSON_BYTES:
        raise BodyTooLargeError(_ADVICE, max_bytes=MAX_JSON_BYTES)
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > MAX_JSON_BYTES:
            raise BodyTooLargeError(_ADVICE, max_bytes=MAX_JSON_BYTES)
        if not message.get("more_body", False):
            return bytes(body)
