"""What the service refuses, and why: each error has a status, a stable code and a sentence that says what to do."""

from __future__ import annotations

from typing import Any


class InvalidSettingError(ValueError):
    """An environment variable is unusable; the process does not start."""


class ServiceError(Exception):
    """A refusal that a client reads. `code` never changes once released."""

    status = 500
    code = "internal_error"
    title = "Internal error"

    def __init__(self, detail: str, *, code: str | None = None, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or type(self).code
        self.headers = headers or {}

    def extra(self) -> dict[str, Any]:
        """Further members of the problem document."""
        return {}


class BadRequestError(ServiceError):
    """The request cannot be understood."""

    status, code, title = 400, "bad_request", "Bad request"


class NotFoundError(ServiceError):
    """There is no such resource for this tenant."""

    status, code, title = 404, "not_found", "Not found"


class ConflictError(ServiceError):
    """The resource is in a state that does not allow this."""

    status, code, title = 409, "conflict", "Conflict"


class BodyTooLargeError(ServiceError):
    """The body is longer than the limit."""

    status, code, title = 413, "body_too_large", "Body too large"

    def __init__(self, advice: str, *, max_bytes: int) -> None:
        super().__init__(f"the body is longer than the limit of {max_bytes} bytes: {advice}")
        self.max_bytes = max_bytes

    def extra(self) -> dict[str, Any]:
        """The limit."""
        return {"max_bytes": self.max_bytes}


class UnsupportedMediaTypeError(ServiceError):
    """The body travels in a way that the route does not take."""

    status, code, title = 415, "unsupported_media_type", "Unsupported media type"


class RangeNotSatisfiableError(ServiceError):
    """The range lies outside the file."""

    status, code, title = 416, "range_not_satisfiable", "Range not satisfiable"

    def __init__(self, *, size: int) -> None:
        super().__init__(
            f"the file has {size} bytes, and the range has none of them: ask for one that begins within the file",
            headers={"Content-Range": f"bytes */{size}"},
        )


class UnprocessableError(ServiceError):
    """The request is well formed, and what it says cannot be done."""

    status, code, title = 422, "unprocessable", "Unprocessable content"


class UploadTimedOutError(ServiceError):
    """The client stopped sending."""

    status, code, title = 408, "upload_timed_out", "Upload timed out"


class UnavailableError(ServiceError):
    """Something that the service needs is away for now."""

    status, code, title = 503, "unavailable", "Unavailable"


class InsufficientStorageError(ServiceError):
    """There is no room for the body."""

    status, code, title = 507, "insufficient_storage", "Insufficient storage"
