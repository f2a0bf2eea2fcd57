"""What the supervisor and its child say to one another: one request line in, JSON lines of events out."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

from worker.sanitizer.spec import ArchitectureSpec, InputSpec, SanitizeSpec

MAX_EVENT_BYTES = 64 * 1024
MAX_MESSAGE_CHARACTERS = 2000
MAX_PROTECTIONS = 32
_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One job, as the child reads it. Paths are absolute; the child opens nothing else of ours.

    A preview writes its report only.
    """

    kind: Literal["sanitize", "preview"] = "sanitize"
    checkpoint_path: str
    clean_path: str
    triggered_path: str | None
    target_class: int | None
    output_path: str
    report_path: str
    figures_path: str  # a folder, made by the child if it draws any
    architecture: ArchitectureSpec
    input: InputSpec
    spec: SanitizeSpec
    threads: int  # 0: as many as torch chooses
    max_file_bytes: int
    cpu_seconds: int = 0  # 0: no limit of the process's own, and so for the next
    memory_bytes: int = 0

    def to_payload(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Started:
    """The child runs, under these protections (their names are `worker.sandbox`'s)."""

    protections: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the job is."""

    phase: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The checkpoint and the report lie at their paths."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The job cannot be done, and another attempt would not help."""

    code: str
    message: str


Event = Started | Progress | Succeeded | Refused


class ProtocolError(Exception):
    """A line that is not an event. Whoever writes one is not trusted with another."""


def encode(event: Event) -> bytes:
    """Return the event as one line."""
    name = type(event).__name__.lower()
    return json.dumps({"event": name, **asdict(event)}, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Event:
    """Return the event of one line. The child parses hostile files, so its lines are checked like foreign input.

    Raises:
        ProtocolError: it is none.
    """
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("not JSON") from error
    match fields:
        case {"event": "started", "protections": [*names]}:
            if len(names) <= MAX_PROTECTIONS and all(isinstance(n, str) and _CODE.fullmatch(n) for n in names):
                return Started(tuple(names))
        case {"event": "progress", "phase": str(phase), "done": int(done), "total": int(total)}:
            if len(phase) <= 200 and 0 <= done <= total < 2**53:
                return Progress(phase, done, total)
        case {"event": "succeeded"}:
            return Succeeded()
        case {"event": "refused", "code": str(code), "message": str(message)}:
            if _CODE.fullmatch(code):
                return Refused(code, message[:MAX_MESSAGE_CHARACTERS])
    raise ProtocolError("not an event")
