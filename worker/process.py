"""The child as a process of the system: a clean environment, pipes that cannot block, an end that leaves nothing."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

import psutil

from worker import protocol, sandbox
from worker.sandbox import Area

if TYPE_CHECKING:
    from collections.abc import Iterator

MODULE = "worker.child"
# Below the staging folder: what children may read, and where they leave their results.
INPUTS, OUTPUTS = "in", "out"
LOG_TAIL_BYTES = 16 * 1024
READ_BYTES = 64 * 1024
MAX_LAST_READS = 1100  # a full pipe and more: whoever still writes after its end is not listened to for ever
REAP_SECONDS = 30  # a process in a driver's call ends late
DESCENDANTS_SECONDS = 0.5  # a walk over all processes of the machine
# What a child may know of our environment. An allow-list: a database or broker URL must never be in it.
ENVIRONMENT = ("CUDA_VISIBLE_DEVICES", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "PATH", "TZ")
ENVIRONMENT_PREFIXES = ("GOMP_", "KMP_", "MKL_", "NVIDIA_", "OMP_", "OPENBLAS_")
# The C library's allocator, by default, gives every large buffer back to the system and has it zeroed page by page when
# the next step asks for the same. So it keeps up to half a gibibyte; the memory ceiling counts what it keeps.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(512 << 20)}
_ROOT = Path(__file__).resolve().parent.parent


def environment(directory: Path) -> dict[str, str]:
    """Return the whole environment of a child whose private folder is `directory`."""
    allowed = {
        name: value
        for name, value in os.environ.items()
        if name in ENVIRONMENT or name.startswith(ENVIRONMENT_PREFIXES)
    }
    return allowed | {
        **ALLOCATOR,
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # deterministic cuBLAS needs it before CUDA starts
        "HF_HUB_OFFLINE": "1",
        "HOME": str(directory),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": str(_ROOT),
        "TMPDIR": str(directory),
    }


class Process:
    """A child that waits for its request, then serves it. Session, folder and pipes of its own."""

    def __init__(self, staging: Path, *, module: str = MODULE) -> None:
        staging.mkdir(parents=True, exist_ok=True)
        self.directory = Path(tempfile.mkdtemp(prefix="child-", dir=staging))
        area = Area(staging / INPUTS, staging / OUTPUTS, self.directory)
        area.inputs.mkdir(exist_ok=True)
        area.outputs.mkdir(exist_ok=True)
        program = sandbox.bubblewrap()
        container = [] if program is None else sandbox.container(program, area, module)
        self._is_contained = program is not None
        self._popen = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [*container, sys.executable, "-P", "-s", "-m", module, *area.arguments()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.directory,
            env=environment(self.directory),
            start_new_session=True,
        )
        self._process = psutil.Process(self._popen.pid)
        self._descendants: set[psutil.Process] = set()
        self._descendants_due = 0.0
        self._unsent = b""
        self._events = b""
        self._num_event_bytes = 0
        self._log = b""
        self._selector = selectors.DefaultSelector()
        self._came = False
        self._killed = False
        self._stdin, self._stdout, self._stderr = map(
            _pipe, (self._popen.stdin, self._popen.stdout, self._popen.stderr)
        )
        self._selector.register(self._stdout, selectors.EVENT_READ)
        self._selector.register(self._stderr, selectors.EVENT_READ)

    @property
    def pid(self) -> int:
        """Its process id, which is also its process group and session."""
        return self._popen.pid

    def send(self, line: bytes) -> None:
        """Send its request, as far as the pipe takes it now; `read_lines` sends the rest."""
        self._unsent = line
        self._selector.register(self._stdin, selectors.EVENT_WRITE)

    def read_lines(self, timeout_seconds: float, *, max_total_bytes: int) -> Iterator[bytes]:
        """Wait for output, at most so long, and yield the whole lines that came.

        Raises:
            ProtocolError: a line, or all of them together, are too long.
        """
        self._pump(timeout_seconds)
        *lines, self._events = self._events.split(b"\n")
        yield from lines
        if len(self._events) > protocol.MAX_EVENT_BYTES or self._num_event_bytes > max_total_bytes:
            raise protocol.ProtocolError("too much output")

    def read_last_lines(self, *, max_total_bytes: int) -> Iterator[bytes]:
        """Yield what is left in the pipe of a process that has ended. Raises as `read_lines` does."""
        self._kill_group()
        for _ in range(MAX_LAST_READS):
            yield from self.read_lines(0, max_total_bytes=max_total_bytes)
            if not self._came:
                return

    def has_ended(self) -> bool:
        """Whether it has ended. It is not reaped yet, so its process group cannot become somebody else's."""
        try:
            return bool(self._process.status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True

    def exit_status(self) -> int:
        """Return the exit status of a process that has ended, or minus the signal that ended it."""
        status = self._popen.wait()
        # The container's end tells of a signal as a shell does.
        return 128 - status if self._is_contained and status > 128 else status

    def memory_bytes(self) -> int:
        """Return the resident memory of it and its descendants together."""
        self._find_descendants()
        total = 0
        for process in (self._process, *self._descendants):
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def log_tail(self) -> str:
        """Return the last that it wrote to stderr (and by print)."""
        return self._log.decode(errors="replace")

    def kill(self) -> None:
        """Kill it and its descendants, those too that left its session, and remove its folder. Idempotent."""
        if self._killed:
            return
        self._killed = True
        self._find_descendants(now=True)
        self._kill_group()
        for process in self._descendants:
            with contextlib.suppress(psutil.Error):  # psutil compares start times: never a stranger with the same id
                process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(REAP_SECONDS)
        self._kill_marked()
        self._selector.close()
        for pipe in (self._stdin, self._stdout, self._stderr):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _kill_group(self) -> None:
        if self._popen.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._popen.pid, signal.SIGKILL)

    def _kill_marked(self) -> None:
        """Kill what left the session and lost its parent: it still has the private folder in its environment."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get("HOME") == str(self.directory):
                    process.kill()

    def _find_descendants(self, *, now: bool = False) -> None:
        if now or time.monotonic() >= self._descendants_due:
            self._descendants_due = time.monotonic() + DESCENDANTS_SECONDS
            with contextlib.suppress(psutil.Error):
                self._descendants.update(self._process.children(recursive=True))
            self._descendants = {process for process in self._descendants if process.is_running()}

    def _pump(self, timeout_seconds: float) -> None:
        """Move what the pipes take and give, at most one buffer each."""
        self._came = False
        for key, _ in self._selector.select(timeout_seconds):
            if key.fileobj is self._stdin:
                self._write()
                continue
            data = self._read(key)
            self._came = self._came or bool(data)
            if key.fileobj is self._stdout:
                self._events += data
                self._num_event_bytes += len(data)
            else:
                self._log = (self._log + data)[-LOG_TAIL_BYTES:]

    def _write(self) -> None:
        try:
            self._unsent = self._unsent[os.write(self._stdin.fileno(), self._unsent) :]
        except BlockingIOError:
            return
        except BrokenPipeError:  # it has ended, or closed its input; how it ends is what counts
            self._unsent = b""
        if not self._unsent:
            self._selector.unregister(self._stdin)

    def _read(self, key: selectors.SelectorKey) -> bytes:
        try:
            data = os.read(key.fd, READ_BYTES)
        except BlockingIOError:
            return b""
        if not data:
            self._selector.unregister(key.fileobj)
        return data


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise AssertionError("every stream of a child is a pipe")
    os.set_blocking(stream.fileno(), False)
    return stream
