"""One isolated child process per job: starts it, follows it, and ends it, whatever it does.

Pure of the database and the queue: the caller's `on_tick` says whether to go on. Everything that a child does wrong
ends in an `Outcome`; a child is never asked to stop, it is killed, with all of its descendants.
"""

from __future__ import annotations

import contextlib
import enum
import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker import protocol
from worker.process import INPUTS, MODULE, OUTPUTS, Process

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

POLL_SECONDS = 0.05
MEMORY_SECONDS = 0.1
TICK_SECONDS = 0.5
PROBE = "worker.sandbox"
PROBE_SECONDS = 30.0
EXIT_SECONDS = 5.0  # between the last event and the end of the process
MAX_EVENTS_BYTES = 64 * 1024 * 1024  # of one job: ten progress lines a second for a day are less


class Tick(enum.Enum):
    """The caller's answer to a heartbeat."""

    CONTINUE = "continue"
    CANCEL = "cancel"
    ABANDON = "abandon"  # the lease is lost: somebody else has the job


class Kind(enum.Enum):
    """How a run ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"  # code and message are for the client; another attempt would not help
    CRASHED = "crashed"  # the process failed, not the job: another attempt may help
    CANCELLED = "cancelled"
    ABANDONED = "abandoned"
    INTERRUPTED = "interrupted"  # this worker is shutting down


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one job may use."""

    deadline_seconds: float
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended, for the record and for the log."""

    kind: Kind
    code: str = ""
    message: str = ""
    protections: tuple[str, ...] = ()
    log_tail: str = ""
    peak_memory_bytes: int = 0
    seconds: float = 0.0


class Supervisor:
    """Runs jobs one after another, each in a process of its own, and keeps one warm for the next.

    A spare has imported everything and waits for its request, so a job starts in milliseconds. It is started anew (not
    forked), so CUDA never meets fork and nothing of one job is left for the next. Call it from one thread: the kernel
    ends a child when the thread that started it ends.
    """

    def __init__(self, staging: Path, *, module: str = MODULE) -> None:
        self._staging = staging
        self._module = module
        self._spare: Process | None = None

    def warm(self) -> Process:
        """Start the spare, if there is none alive, and return it."""
        if self._spare is not None and self._spare.has_ended():
            self._spare.kill()
            self._spare = None
        if self._spare is None:
            self._spare = Process(self._staging, module=self._module)
        return self._spare

    def close(self) -> None:
        """End the spare, and remove its folders if no job has files there."""
        if self._spare is not None:
            self._spare.kill()
            self._spare = None
        for name in (INPUTS, OUTPUTS):
            with contextlib.suppress(OSError):
                (self._staging / name).rmdir()

    def run(
        self,
        payload: Mapping[str, Any],
        *,
        limits: Limits,
        on_tick: Callable[[protocol.Progress | None], Tick],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Outcome:
        """Run one request to its end and return how it ended. Leaves no process behind.

        Args:
            payload: the request line, as plain JSON types.
            limits: wall-clock time, and memory of the child and its descendants together.
            on_tick: called twice a second, in a thread of its own so that a slow database cannot hold up the limits,
                with the latest progress. It must not raise.
            should_stop: true when this worker is to shut down.
        """
        child, self._spare = self.warm(), None
        return _Run(child, limits=limits, on_tick=on_tick, should_stop=should_stop).follow(payload)


class _Run:
    """The state of one run."""

    def __init__(
        self,
        child: Process,
        *,
        limits: Limits,
        on_tick: Callable[[protocol.Progress | None], Tick],
        should_stop: Callable[[], bool],
    ) -> None:
        self._child = child
        self._limits = limits
        self._on_tick = on_tick
        self._should_stop = should_stop
        self._began = time.monotonic()
        self._memory_due = 0.0
        self._tick_due = 0.0
        self._tick: Future[Tick] | None = None
        self._progress: protocol.Progress | None = None
        self._final: protocol.Succeeded | protocol.Refused | None = None
        self._final_at = 0.0
        self._peak_memory_bytes = 0
        self._protections: tuple[str, ...] = ()

    def follow(self, payload: Mapping[str, Any]) -> Outcome:
        self._child.send(json.dumps(payload).encode() + b"\n")
        ticker = ThreadPoolExecutor(1, thread_name_prefix="tick")
        try:
            outcome = None
            while outcome is None:
                outcome = self._step(ticker)
        finally:
            self._child.kill()
            # A tick under way may hold a database transaction; its caller must not publish beside it.
            ticker.shutdown(wait=True)
        return outcome

    def _step(self, ticker: ThreadPoolExecutor) -> Outcome | None:
        ended = self._child.has_ended()
        try:
            if ended:
                lines = self._child.read_last_lines(max_total_bytes=MAX_EVENTS_BYTES)
            else:
                lines = self._child.read_lines(POLL_SECONDS, max_total_bytes=MAX_EVENTS_BYTES)
            for line in lines:
                self._take(protocol.decode(line))
        except protocol.ProtocolError as error:
            return self._outcome(Kind.CRASHED, "worker_crashed", f"the job's process broke the protocol: {error}")
        if ended:
            return self._at_end()
        return self._check_limits() or self._check_caller(ticker)

    def _take(self, event: protocol.Event) -> None:
        if self._final is not None:
            raise protocol.ProtocolError("an event after the last one")
        match event:
            case protocol.Started(protections):
                self._protections = protections
            case protocol.Progress():
                self._progress = event
            case protocol.Succeeded() | protocol.Refused():
                self._final = event
                self._final_at = time.monotonic()

    def _at_end(self) -> Outcome:
        status = self._child.exit_status()
        if self._final is None:
            ending = f"was ended by signal {-status}" if status < 0 else f"exited with status {status}"
            return self._outcome(Kind.CRASHED, "worker_crashed", f"the job's process {ending} without a result")
        return self._of_final(self._final)

    def _of_final(self, final: protocol.Succeeded | protocol.Refused) -> Outcome:
        if isinstance(final, protocol.Refused):
            return self._outcome(Kind.FAILED, final.code, final.message)
        return self._outcome(Kind.SUCCEEDED)

    def _check_limits(self) -> Outcome | None:
        now = time.monotonic()
        if self._final is not None and now - self._final_at > EXIT_SECONDS:
            return self._of_final(self._final)  # it said all there is to say and hangs in its exit
        if now - self._began > self._limits.deadline_seconds:
            message = f"the job took longer than {self._limits.deadline_seconds:g} seconds"
            return self._outcome(Kind.FAILED, "deadline_exceeded", message)
        if now >= self._memory_due:
            self._memory_due = now + MEMORY_SECONDS
            used = self._child.memory_bytes()
            self._peak_memory_bytes = max(self._peak_memory_bytes, used)
            if used > self._limits.memory_bytes:
                message = f"the job needed more than {self._limits.memory_bytes} bytes of memory"
                return self._outcome(Kind.FAILED, "memory_limit_exceeded", message)
        return None

    def _check_caller(self, ticker: ThreadPoolExecutor) -> Outcome | None:
        if self._should_stop():
            return self._outcome(Kind.INTERRUPTED, "worker_stopped", "the worker is shutting down")
        now = time.monotonic()
        if self._tick is None and now >= self._tick_due:
            self._tick_due = now + TICK_SECONDS
            self._tick = ticker.submit(self._on_tick, self._progress)
        elif self._tick is not None and self._tick.done():
            answer, self._tick = self._tick.result(), None
            if answer is Tick.CANCEL:
                return self._outcome(Kind.CANCELLED)
            if answer is Tick.ABANDON:
                return self._outcome(Kind.ABANDONED, "lease_lost", "another worker has the job")
        return None

    def _outcome(self, kind: Kind, code: str = "", message: str = "") -> Outcome:
        return Outcome(
            kind=kind,
            code=code,
            message=message,
            protections=self._protections,
            log_tail=self._child.log_tail(),
            peak_memory_bytes=self._peak_memory_bytes,
            seconds=time.monotonic() - self._began,
        )


def probe(staging: Path) -> tuple[str, ...]:
    """Start a process as a job's is started, without torch, and return the protections that are active in it.

    Raises:
        RuntimeError: it did not say so; its log is the message.
    """
    process = Process(staging, module=PROBE)
    try:
        deadline = time.monotonic() + PROBE_SECONDS
        while not process.has_ended() and time.monotonic() < deadline:
            for line in process.read_lines(POLL_SECONDS, max_total_bytes=protocol.MAX_EVENT_BYTES):
                return _protections(line)
        for line in process.read_last_lines(max_total_bytes=protocol.MAX_EVENT_BYTES):
            return _protections(line)
    finally:
        process.kill()
    raise RuntimeError(f"no process could be confined: {process.log_tail()[-500:]}")


def _protections(line: bytes) -> tuple[str, ...]:
    event = protocol.decode(line)
    assert isinstance(event, protocol.Started)
    return event.protections
