"""Fuzz the parsers, guided by the coverage of our code: `python -m tests.fuzz --seconds 225` is an hour for all.

Each parser runs in a process of its own, so that one that dies does not take the others along. An input at which
anything but a refusal came out stays in the folder of findings, and belongs into `tests/hostile`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NoReturn

import atheris

with atheris.instrument_imports(include=["worker.sanitizer"]):
    from tests.fuzz.targets import Target, targets
    from worker.sanitizer.errors import SanitizerError

MAX_MEMORY_MIB = 1536
MAX_INPUT_BYTES = 65536
ONE_INPUT_SECONDS = 30


def fuzz(target: Target, seconds: int, folder: Path, findings: Path) -> NoReturn:
    """Fuzz one parser in this process, which ends with it."""
    seeds = folder / "seeds"
    seeds.mkdir()
    for index, seed in enumerate(target.seeds()):
        (seeds / str(index)).write_bytes(seed)
    path = folder / "upload"
    executions = 0
    stop = time.monotonic() + seconds

    def one(data: bytes) -> None:
        nonlocal executions
        executions += 1
        try:
            target.parse(data, path)
        except SanitizerError:
            pass
        except BaseException:
            (findings / f"{target.name}-{hashlib.sha256(data).hexdigest()[:16]}").write_bytes(data)
            traceback.print_exc()
            end(1)
        if time.monotonic() > stop:
            end(0)

    def end(status: int) -> NoReturn:
        # An orderly exit would wait for threads of libraries that a forked process does not have.
        (folder / "executions").write_text(str(executions))
        sys.stderr.flush()
        os._exit(status)

    options = ["-seed=1", f"-timeout={ONE_INPUT_SECONDS}", f"-rss_limit_mb={MAX_MEMORY_MIB}",
               f"-max_len={MAX_INPUT_BYTES}", f"-artifact_prefix={findings}/{target.name}-"]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(seeds)], one)
    atheris.Fuzz()
    end(1)


def run(target: Target, seconds: int, findings: Path) -> dict[str, object]:
    """Fuzz one parser in a child, and tell how often it ran and how it ended."""
    with tempfile.TemporaryDirectory() as name:
        log = Path(name) / "log"
        child = os.fork()
        if child == 0:
            with log.open("wb") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            try:
                fuzz(target, seconds, Path(name), findings)
            except BaseException:
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)  # leaving the block here would remove the folder under the parent
        _, status, used = os.wait4(child, 0)
        said = log.read_text(encoding="utf-8", errors="replace")
        count = Path(name) / "executions"
        executions = int(count.read_text()) if count.exists() else 0
    failed = os.waitstatus_to_exitcode(status) != 0
    return {
        "target": target.name,
        "executions": executions,
        # On a busy machine these, not the seconds that went by, are how long it was fuzzed.
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "failed": failed,
        "said": said[-3000:] if failed else "",
    }


def main() -> int:
    """Fuzz the parsers named, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz the parsers of uploads.")
    parser.add_argument("--seconds", type=int, default=5, help="for each parser")
    parser.add_argument("--only", nargs="*", default=[], choices=sorted(targets()), help="these parsers")
    parser.add_argument("--findings", type=Path, default=Path(".cache/fuzz"), help="where inputs that fail are kept")
    options = parser.parse_args()
    options.findings.mkdir(parents=True, exist_ok=True)
    answers = []
    for name in options.only or targets():
        answers.append(run(targets()[name], options.seconds, options.findings.resolve()))
        sys.stdout.write(json.dumps(answers[-1]) + "\n")
        sys.stdout.flush()
    return int(any(answer["failed"] for answer in answers))


if __name__ == "__main__":
    sys.exit(main())
