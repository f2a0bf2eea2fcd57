"""The errors of the numerical library: a stable code and a sentence that says what to do."""

from __future__ import annotations


class SanitizerError(Exception):
    """A refusal or failure that a client may read. `code` never changes once released."""

    code = "sanitizer_error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidSpecError(SanitizerError, ValueError):
    """A field of a specification is out of its bounds (a ValueError, so that a web framework can answer 422)."""

    code = "invalid_spec"
