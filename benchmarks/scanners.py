"""What the published scanners say of the files of `tests/hostile`, side by side with what the parsers do with them.

    python -m benchmarks.scanners --python picklescan=PATH --python modelscan=PATH ...

Each scanner lives in an environment of its own (`python -m venv`, `pip install picklescan`; fickling 0.1.12 also needs
typing_extensions, which it does not ask for), named by its interpreter; one that is not named is listed as not run.
Scanners are never part of the product.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

SCANNERS = ("picklescan", "modelscan", "fickling", "modelaudit")
VERDICTS = ("flagged", "clean", "skipped", "error", "not asked")
RESULT = Path(__file__).parent / "results" / "scanners.md"
ONE_FILE_SECONDS = 30

_INTRODUCTION = """# Published scanners on the hostile corpus

`python -m benchmarks.scanners` on the {count} files that `tests/hostile` generates. *Clean* is what a scanner itself
calls clean: no finding, no error, at least one file scanned. *Skipped* is a file that it did not look at, which its
summary reports without a finding; *error* is an exception, or a scan that it calls incomplete; *not asked* is what
was left after {seconds:g} seconds of processor time (`--seconds`). The scanners look for code in pickles: the second
group is mostly outside of what they promise, and is listed because an upload form that relies on a scanner lets such
files through.
"""
_END = """The parsers' row is what `tests/hostile/test_corpus.py` asserts on every change: each file ends in a refusal
under its code, or ({kept} files) its foreign pickle is neither read nor passed on. Files whose code ran while a scanner
looked at them: {told}.
"""

Verdict = Callable[[str], str]


def _picklescan() -> Verdict:
    from picklescan.scanner import scan_file_path  # noqa: PLC0415

    def verdict(path: str) -> str:
        found = scan_file_path(path)
        if found.issues_count:
            return "flagged"
        return "error" if found.scan_err else "clean" if found.scanned_files else "skipped"

    return verdict


def _modelscan() -> Verdict:
    from modelscan.modelscan import ModelScan  # noqa: PLC0415
    from modelscan.settings import DEFAULT_SETTINGS  # noqa: PLC0415

    def verdict(path: str) -> str:
        found = ModelScan(settings=DEFAULT_SETTINGS).scan(path)
        if found["issues"]:
            return "flagged"
        if found["errors"]:
            return "error"
        return "clean" if found["summary"]["scanned"]["total_scanned"] else "skipped"

    return verdict


def _fickling() -> Verdict:
    import fickling  # noqa: PLC0415

    def verdict(path: str) -> str:
        # Its own loader of archives looks at members with the suffixes of pickles, its loader of files at the rest.
        is_zip = Path(path).read_bytes()[:4] == b"PK\3\4"
        found = list(fickling.scan_zip_archive(path, graceful=True).values()) if is_zip else [
            fickling.scan_file(path, graceful=True)
        ]  # fmt: skip
        if any(result.results and not result.is_safe for result in found):
            return "flagged"
        if any(result.errors for result in found):
            return "error"
        return "clean" if found else "skipped"

    return verdict


def _modelaudit() -> Verdict:
    from modelaudit import core  # noqa: PLC0415

    def verdict(path: str) -> str:
        found = core.scan_model_directory_or_file(path, timeout=ONE_FILE_SECONDS)
        code = core.determine_exit_code(found)
        if code == 2:
            return "error" if found.files_scanned else "skipped"
        return "flagged" if code else "clean" if found.files_scanned else "skipped"

    return verdict


def scan(name: str, folder: Path, seconds: float) -> None:
    """Ask one scanner about the files of a folder, those with code first; to be run by the interpreter that has it."""
    logging.disable(logging.CRITICAL)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    verdict = {"picklescan": _picklescan, "modelscan": _modelscan, "fickling": _fickling, "modelaudit": _modelaudit}[
        name
    ]()
    found: dict[str, str] = {}
    # Of the processor, so that a busy machine asks about as many files as an idle one.
    stop = time.process_time() + seconds
    for path in sorted(folder.iterdir(), key=lambda path: ("-code-" not in path.name, path.name)):
        if time.process_time() > stop:
            break
        signal.signal(signal.SIGALRM, _too_long)
        signal.alarm(ONE_FILE_SECONDS)
        try:
            found[path.name] = verdict(str(path))
        except Exception:
            found[path.name] = "error"
        finally:
            signal.alarm(0)
    json.dump({"version": metadata.version(name), "verdicts": found}, out)
    out.close()


def _too_long(*_: object) -> None:
    raise TimeoutError


def ask(name: str, interpreter: Path, folder: Path, seconds: float) -> dict:
    """The answers of one scanner."""
    with tempfile.TemporaryDirectory() as home:
        asked = ["--inside", name, "--folder", folder, "--seconds", str(seconds)]
        done = subprocess.run(
            [interpreter, "-B", Path(__file__).resolve(), *asked],
            stdout=subprocess.PIPE, text=True, check=True, cwd=home,
            # None of them needs to tell anybody that it ran.
            env={"PATH": os.environ["PATH"], "HOME": home, "DO_NOT_TRACK": "1", "NO_ANALYTICS": "1",
                 "PROMPTFOO_DISABLE_TELEMETRY": "1", "CI": "1"},
        )  # fmt: skip
    return json.loads(done.stdout)


def table(cases: list[dict], answers: dict[str, dict], ran: dict[str, list[str]], seconds: float) -> str:
    """The page."""
    groups = {
        "files with code in a pickle (it makes one empty file, if it runs)": [
            case["file"] for case in cases if case["carries_code"]
        ],
        "other hostile files (bombs, lies, absurd sizes, damage)": [
            case["file"] for case in cases if not case["carries_code"]
        ],
    }
    lines = [_INTRODUCTION.format(count=len(cases), seconds=seconds)]
    for group, files in groups.items():
        lines += [
            f"## {len(files)} {group}",
            "",
            f"| scanner | {' | '.join(VERDICTS)} |",
            "|---|" + "---|" * len(VERDICTS),
        ]
        for name in SCANNERS:
            if name not in answers:
                lines.append(f"| {name} | not run |" + " |" * (len(VERDICTS) - 1))
                continue
            counts = Counter(answers[name]["verdicts"].get(file, "not asked") for file in files)
            lines.append(
                f"| {name} {answers[name]['version']} | " + " | ".join(str(counts[v]) for v in VERDICTS) + " |"
            )
        kept = sum(case["neutralised"] for case in cases if case["file"] in files)
        ours = f"{len(files) - kept} refused" + (f", {kept} read without the pickle" if kept else "")
        lines += [f"| this repository's parsers | {ours}" + " | 0" * (len(VERDICTS) - 1) + " |", ""]
    lines += ["## Code that was called clean, or not looked at", ""]
    for name in answers:
        for verdict in ("clean", "skipped"):
            missed = [file for file in groups[next(iter(groups))] if answers[name]["verdicts"].get(file) == verdict]
            lines += [f"- {name}, {verdict} ({len(missed)}): " + (", ".join(f"`{file}`" for file in missed) or "none")]
    told = ", ".join(f"{name}: {len(found)}" for name, found in ran.items()) or "none was asked"
    lines += ["", _END.format(told=told, kept=sum(case["neutralised"] for case in cases))]
    return "\n".join(lines)


def main() -> None:
    """Generate the corpus, ask the scanners, write the page."""
    parser = argparse.ArgumentParser(description="Ask published scanners about the hostile corpus.")
    parser.add_argument("--python", action="append", default=[], metavar="SCANNER=PATH", help="an interpreter")
    parser.add_argument("--seconds", type=float, default=1800, help="of processor time for each scanner")
    parser.add_argument("--inside", choices=SCANNERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        scan(options.inside, options.folder, options.seconds)
        return
    from tests.hostile import corpus  # noqa: PLC0415
    from tests.hostile.case import NEUTRALISED  # noqa: PLC0415

    interpreters = dict(pair.split("=", 1) for pair in options.python)
    with tempfile.TemporaryDirectory() as name:
        uploads, marker = Path(name) / "uploads", Path(name) / "marker"
        uploads.mkdir()
        marker.mkdir()
        cases = [
            {"file": c.file_name, "carries_code": c.carries_code, "neutralised": NEUTRALISED in c.codes}
            for c in corpus.write(uploads, marker)
        ]
        answers, ran = {}, {}
        for scanner, interpreter in interpreters.items():
            answers[scanner] = ask(scanner, Path(interpreter).absolute(), uploads, options.seconds)
            ran[scanner] = [path.name for path in marker.iterdir()]
            for path in marker.iterdir():
                path.rmdir() if path.is_dir() else path.unlink()
    RESULT.write_text(table(cases, answers, ran, options.seconds), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
