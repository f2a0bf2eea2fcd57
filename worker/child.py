"""The process of one job: `python -m worker.child` reads one request, does it, says how it went, and ends.

It is the only process of ours that parses what was uploaded. It starts before it has work (the supervisor keeps one
warm), so everything slow to import is imported first. It holds no credential and dies with its supervisor.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from worker import protocol

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_OPEN_FILES = 1024
MIN_SECONDS_BETWEEN_PROGRESS = 0.1
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000


def main() -> int:
    """Serve one request. Returns the exit status: 0 whenever the outcome was told."""
    emit = _take_stdout()
    network = _leave_network()
    _die_with_parent()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit(resource.RLIMIT_NOFILE, MAX_OPEN_FILES)

    # torch: only in this process, and after the limits
    import worker.sanitizer.preview  # noqa: PLC0415
    import worker.sanitizer.sanitize  # noqa: F401, PLC0415

    line = sys.stdin.buffer.readline()
    if not line:  # the supervisor has gone, or does not need its spare any more
        return 0
    threading.Thread(target=_die_at_end_of_input, daemon=True).start()
    emit(protocol.Started(network))
    emit(_outcome(line, emit))
    return 0


def _outcome(line: bytes, emit: Callable[[protocol.Event], None]) -> protocol.Event:
    import torch  # noqa: PLC0415

    from worker.sanitizer.errors import SanitizerError  # noqa: PLC0415

    try:
        _serve(line, emit)
    except SanitizerError as error:
        return protocol.Refused(error.code, error.message)
    except torch.OutOfMemoryError:
        return protocol.Refused("device_out_of_memory", "the device's memory does not hold this network and one batch")
    except MemoryError:
        return protocol.Refused("memory_limit_exceeded", "the job needs more memory than a job may have")
    except Exception:  # the border of the process: the trace goes to the log, the client gets a code
        traceback.print_exc()
        return protocol.Refused(
            "internal_error", "the sanitizer failed in a way it does not know; the log has the trace"
        )
    return protocol.Succeeded()


def _serve(line: bytes, emit: Callable[[protocol.Event], None]) -> None:
    import pydantic  # noqa: PLC0415
    import torch  # noqa: PLC0415

    request = pydantic.TypeAdapter(protocol.Request).validate_json(line)
    _limit(resource.RLIMIT_FSIZE, request.max_file_bytes)
    if request.threads:
        torch.set_num_threads(request.threads)
    text = (_preview if request.kind == "preview" else _sanitize)(request, _throttled(emit))
    Path(request.report_path).write_text(text, encoding="utf-8")


def _preview(request: protocol.Request, progress: Callable[[str, int, int], None]) -> str:
    from worker.sanitizer.findings import to_json  # noqa: PLC0415
    from worker.sanitizer.preview import preview  # noqa: PLC0415

    found = preview(
        checkpoint_path=Path(request.checkpoint_path),
        clean_path=Path(request.clean_path),
        architecture=request.architecture,
        input_spec=request.input,
        device_name=request.spec.device,
        progress=progress,
    )
    return to_json(found)


def _sanitize(request: protocol.Request, progress: Callable[[str, int, int], None]) -> str:
    from worker.sanitizer.report import to_json  # noqa: PLC0415
    from worker.sanitizer.sanitize import sanitize  # noqa: PLC0415

    report = sanitize(
        checkpoint_path=Path(request.checkpoint_path),
        clean_path=Path(request.clean_path),
        triggered_path=None if request.triggered_path is None else Path(request.triggered_path),
        target_class=request.target_class,
        output_path=Path(request.output_path),
        figures_path=Path(request.figures_path),
        architecture=request.architecture,
        input_spec=request.input,
        spec=request.spec,
        progress=progress,
    )
    return to_json(report)


def _throttled(emit: Callable[[protocol.Event], None]) -> Callable[[str, int, int], None]:
    """Return a progress callback that passes on a new phase or a finished one at once, and else ten a second."""
    last_phase, last_time = "", 0.0

    def progress(phase: str, done: int, total: int) -> None:
        nonlocal last_phase, last_time
        now = time.monotonic()
        if phase != last_phase or done >= total or now - last_time >= MIN_SECONDS_BETWEEN_PROGRESS:
            last_phase, last_time = phase, now
            emit(protocol.Progress(phase, done, total))

    return progress


def _take_stdout() -> Callable[[protocol.Event], None]:
    """Keep stdout for events under another number, and send whatever prints to the log: a print breaks nothing."""
    events = os.dup(1)
    os.dup2(2, 1)

    def emit(event: protocol.Event) -> None:
        line = protocol.encode(event)
        while line:
            line = line[os.write(events, line) :]

    return emit


def _leave_network() -> str:
    """Move into an empty network namespace where the system allows it (Linux, before any thread is started)."""
    if sys.platform != "linux":
        return "inherited"
    libc = ctypes.CDLL(None, use_errno=True)
    for flags in (CLONE_NEWNET, CLONE_NEWUSER | CLONE_NEWNET):
        if libc.unshare(flags) == 0:
            return "none"
    return "inherited"


def _die_with_parent() -> None:
    """Have the kernel kill us when the supervisor dies, however busy we are; elsewhere the end of stdin must do.

    Also adopt orphaned descendants, so that the supervisor finds them below us when it kills.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _die_at_end_of_input() -> None:
    while os.read(0, 4096):
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _limit(what: int, value: int) -> None:
    _, hard = resource.getrlimit(what)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (value, value))


if __name__ == "__main__":
    sys.exit(main())
