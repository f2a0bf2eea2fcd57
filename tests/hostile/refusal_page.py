"""The page of refusal codes, made from the classes: `python -m tests.hostile.refusal_page` writes it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from worker.sanitizer import refusals
from worker.sanitizer.errors import SanitizerError
from worker.sanitizer.refusals import CheckpointRefusedError, DatasetRefusedError, UploadRefusedError

PAGE = Path(__file__).parents[2] / "docs" / "refusals.md"
_BASES = (CheckpointRefusedError, DatasetRefusedError, UploadRefusedError)
_HEADING = re.compile(r"^# (?P<heading>.+?) -{20,}$|^class (?P<name>\w+)\(", re.MULTILINE)

_INTRODUCTION = """# Why a file is refused

An upload that breaks a rule ends the job with one of these codes and a sentence that names the rule and says what to do
instead. Nothing else happens: no code of the file runs, nothing of it is kept but the upload itself, and no other job
notices. A code keeps its meaning for good; new ones may come.

`tests/hostile/` makes over a thousand hostile files, and each must end within 1.5 GiB of memory and 30 seconds: all but
two in one of these codes. The two are good models with a pickle where no reader of ours looks (behind the end of the
real one, and as a program's sample inputs); they are neutralised: read without it, and written without it.
This page is generated from `worker/sanitizer/refusals.py` by `python -m tests.hostile.refusal_page`; a test compares
the two.
"""


def page() -> str:
    """The page as it must be."""
    found = _INTRODUCTION
    for heading, classes in sections().items():
        found += f"\n## {heading}\n\n| code | refused when |\n|---|---|\n"
        found += "".join(f"| `{kind.code}` | {_sentence(kind)} |\n" for kind in classes)
    return found


def sections() -> dict[str, list[type[SanitizerError]]]:
    """The classes below the headings that the module's own comments give them."""
    found: dict[str, list[type[SanitizerError]]] = {}
    heading = "Any upload"
    for match in _HEADING.finditer(inspect.getsource(refusals)):
        if match["heading"]:
            heading = match["heading"]
            continue
        kind = getattr(refusals, match["name"])
        if kind not in _BASES:
            found.setdefault(heading, []).append(kind)
    return found


def _sentence(kind: type[SanitizerError]) -> str:
    text = " ".join(inspect.cleandoc(kind.__doc__ or "").split())
    assert text, kind
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
