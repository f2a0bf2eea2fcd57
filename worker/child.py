"""The process of one job: `python -m worker.child` reads one request, does it, says how it went, and ends.

It is the only process of ours that parses what was uploaded. It starts before it has work (the supervisor keeps one
warm), so everything slow to import is imported first. It holds no credential and dies with its supervisor.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from worker import protocol, sandbox

if TYPE_CHECKING:
    from collections.abc import Callable

MIN_SECONDS_BETWEEN_PROGRESS = 0.1


def main() -> int:
    """Serve one request. Returns the exit status: 0 whenever the outcome was told."""
    emit = _take_stdout()
    protections = sandbox.confine(sandbox.area(sys.argv[1:]))

    # torch: only in this process, and after the limits
    import worker.sanitizer.preview  # noqa: PLC0415
    import worker.sanitizer.sanitize  # noqa: F401, PLC0415

    line = sys.stdin.buffer.readline()
    if not line:  # the supervisor has gone, or does not need its spare any more
        return 0
    threading.Thread(target=_die_at_end_of_input, daemon=True).start()
    emit(protocol.Started(protections))
    emit(_outcome(line, emit, protections))
    return 0


def _outcome(line: bytes, emit: Callable[[protocol.Event], None], protections: tuple[str, ...]) -> protocol.Event:
    import torch  # noqa: PLC0415

    from worker.sanitizer.errors import SanitizerError  # noqa: PLC0415

    try:
        _serve(line, emit, protections)
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


def _serve(line: bytes, emit: Callable[[protocol.Event], None], protections: tuple[str, ...]) -> None:
    import pydantic  # noqa: PLC0415
    import torch  # noqa: PLC0415

    request = pydantic.TypeAdapter(protocol.Request).validate_json(line)
    sandbox.limit_job(
        max_file_bytes=request.max_file_bytes, cpu_seconds=request.cpu_seconds, memory_bytes=request.memory_bytes
    )
    if request.threads:
        torch.set_num_threads(request.threads)
    if request.kind == "preview":
        text = _preview(request, _throttled(emit))
    else:
        text = _sanitize(request, _throttled(emit), protections)
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


def _sanitize(
    request: protocol.Request, progress: Callable[[str, int, int], None], protections: tuple[str, ...]
) -> str:
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
    environment = dataclasses.replace(report.environment, protections=list(protections))
    return to_json(dataclasses.replace(report, environment=environment))


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


def _die_at_end_of_input() -> None:
    while os.read(0, 4096):
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
