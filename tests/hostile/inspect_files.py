"""A process that reads hostile files one after another, watched: run as `python -m tests.hostile.inspect_files`.

It has none of a job's confinement but resource limits, because the parsers alone must hold. Standard input names the
files, one JSON array [parser, path] a line; each gets one line of JSON in answer. A file that exhausts time or memory
beyond what Python can catch ends the process, and the caller sees at which file.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path

MAX_MEMORY_BYTES = 1536 * 2**20
MAX_SECONDS = (
    30  # of a processor, so that a busy machine does not fail; one that sleeps is ended after ten times as long
)
_READABLE = (
    *(sys.prefix, sys.base_prefix, *(entry for entry in sys.path if entry)),
    *("/usr", "/lib", "/lib64", "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/sys", "/dev/null", "/dev/urandom"),
    "/etc/localtime",
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Whatever touches another process, the network or the file tree; reading a picture needs none of them.
_NEVER = ("os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system", "os.chmod", "os.chown", "os.link",
          "os.mkdir", "os.rename", "os.rmdir", "os.symlink", "os.truncate", "os.utime", "os.putenv", "os.kill",
          "subprocess.Popen", "shutil", "socket", "webbrowser.open", "ftplib", "urllib", "http.client",
          "sqlite3.connect", "pty.spawn", "pickle.find_class", "ctypes.dlopen", "marshal.loads",
          "code.__new__")  # fmt: skip


class Watch:
    """Notes every event that parsing one file has no need of."""

    def __init__(self, own: Path) -> None:
        self.own = str(own)
        self.upload = ""
        self.active = False
        self.found: list[str] = []

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.active:
            return
        if event == "open":
            self.opened(arguments)
        elif event.startswith(_NEVER) and not self.inside(arguments) and not _importing():
            self.found.append(f"{event} {arguments!r}"[:200])

    def opened(self, arguments: tuple[object, ...]) -> None:
        path, mode, flags = arguments
        if isinstance(path, int):
            return
        name = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 - resolving would open links
        writes = bool(int(flags or 0) & _WRITING) or (isinstance(mode, str) and bool(set(mode) & set("wax+")))
        allowed = name.startswith(self.own) or name == "/dev/null"
        if not writes:
            allowed = allowed or name == self.upload or name.startswith(_READABLE)
        if not allowed:
            self.found.append(f"open {name} {mode} {flags}"[:200])

    def inside(self, arguments: tuple[object, ...]) -> bool:
        return (
            bool(arguments) and isinstance(arguments[0], str | bytes) and os.fsdecode(arguments[0]).startswith(self.own)
        )


def _importing() -> bool:
    """Whether Python itself is loading a module, whose bytecode it unmarshals."""
    frame = sys._getframe(2)
    return any("importlib" in caller.f_code.co_filename for caller in _callers(frame))


def _callers(frame):
    while frame is not None:
        yield frame
        frame = frame.f_back


def _peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def main() -> None:
    """Read the files that standard input names."""
    from worker.sanitizer import checkpoint, dataset  # noqa: PLC0415
    from worker.sanitizer.errors import SanitizerError  # noqa: PLC0415

    own = Path(tempfile.gettempdir())
    watch = Watch(own)
    sys.addaudithook(watch)
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    for line in sys.stdin:
        parser, upload = json.loads(line)
        watch.upload, watch.found = upload, []
        _forget_peak()
        signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
        signal.alarm(10 * MAX_SECONDS)
        began, before = time.monotonic(), time.process_time()
        watch.active = True
        try:
            if parser == "dataset":
                found = dataset.read(Path(upload))
                dataset.check(found, num_classes=2, in_channels=3, height=8, width=6, kind="clean")
            else:
                read = checkpoint.read(Path(upload))
                read.write(own / "written", {})
            outcome, message = "accepted", ""
        except SanitizerError as error:
            outcome, message = error.code, error.message
        except Exception as error:  # the point: nothing but refusals may come out
            outcome, message = f"crash {type(error).__name__}", str(error)[:300]
        watch.active = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        answer = {
            "path": upload, "outcome": outcome, "message": message, "seconds": time.monotonic() - began,
            "cpu_seconds": time.process_time() - before, "peak_bytes": _peak_bytes(), "events": watch.found,
        }  # fmt: skip
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
