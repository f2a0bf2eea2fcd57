"""The whole corpus against the parsers, in a process of its own: all but two are refused, and nothing else happens."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.hostile import corpus
from tests.hostile.case import NEUTRALISED, Case
from tests.hostile.inspect_files import MAX_MEMORY_BYTES, MAX_SECONDS, Watch

ROOT = Path(__file__).parents[2]


@dataclass
class Outcome:
    """What the process answered to each file, and what lay in its folders before and after."""

    cases: list[Case]
    answers: dict[str, dict]
    problem: str
    before: dict[str, tuple[int, int]]
    after: dict[str, tuple[int, int]]
    marker: Path
    written: Path


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    found = {path: path.lstat() for path in folder.rglob("*")}
    return {str(path): (stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> Outcome:
    folder = tmp_path_factory.mktemp("corpus")
    uploads, marker, own, elsewhere = (folder / name for name in ("uploads", "marker", "own", "elsewhere"))
    for path in (uploads, marker, own, elsewhere):
        path.mkdir()
    (elsewhere / "secret").write_text("not yours")
    cases = corpus.write(uploads, marker)
    before = {path: stat for path, stat in listing(folder).items() if path != str(own)}
    lines = [json.dumps(["dataset" if c.is_dataset else "checkpoint", str(uploads / c.file_name)]) for c in cases]
    done = subprocess.run(
        [sys.executable, "-B", "-m", "tests.hostile.inspect_files"],
        input="\n".join(lines), capture_output=True, text=True, check=False, cwd=ROOT,
        env={"PATH": os.environ["PATH"], "TMPDIR": str(own), "HOME": str(own), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    answers = {Path(a["path"]).stem: a for a in map(json.loads, done.stdout.splitlines())}
    problem = f"ended with {done.returncode} after {len(answers)} of {len(cases)} files: {done.stderr[-2000:]}"
    after = {path: stat for path, stat in listing(folder).items() if not path.startswith(str(own))}
    return Outcome(cases, answers, problem if done.returncode else "", before, after, marker, own)


def test_the_process_survives_the_whole_corpus(outcome):
    assert not outcome.problem
    assert len(outcome.answers) == len(outcome.cases)


def test_there_are_hundreds_of_files_of_every_format(outcome):
    assert len(outcome.cases) >= 200
    assert len({case.name for case in outcome.cases}) == len(outcome.cases)
    counts = Counter(case.format for case in outcome.cases)
    assert min(counts.values()) >= 25, counts
    assert set(counts) == {"safetensors", "torch", "pickle", "pt2", "onnx", "hugging_face", "npz", "images", "parquet"}


def test_two_files_are_neutralised_and_no_other(outcome):
    accepted = {name for name, answer in outcome.answers.items() if answer["outcome"] == "accepted"}
    assert accepted == {"torch-code-behind-the-pickle", "pt2-code-in-sample-inputs"}


def test_every_other_file_is_refused_under_a_code_of_its_own(outcome):
    wrong = {
        case.name: (outcome.answers[case.name]["outcome"], outcome.answers[case.name]["message"], set(case.codes))
        for case in outcome.cases
        if outcome.answers[case.name]["outcome"].replace("accepted", NEUTRALISED) not in case.codes
    }
    assert wrong == {}


def test_no_code_in_a_file_runs(outcome):
    assert [path.name for path in outcome.marker.iterdir()] == []
    assert sum(case.carries_code for case in outcome.cases) >= 50


def test_nothing_else_is_opened_started_or_written(outcome):
    assert {name: answer["events"] for name, answer in outcome.answers.items() if answer["events"]} == {}
    assert outcome.after == outcome.before


def test_no_file_costs_more_than_a_job_may_use(outcome):
    slow = {name: a["cpu_seconds"] for name, a in outcome.answers.items() if a["cpu_seconds"] > MAX_SECONDS}
    large = {name: a["peak_bytes"] for name, a in outcome.answers.items() if a["peak_bytes"] > MAX_MEMORY_BYTES}
    assert (slow, large) == ({}, {})


def test_every_refusal_says_what_it_is_about_and_shows_nothing_of_the_machine(outcome):
    for name, answer in outcome.answers.items():
        if answer["outcome"] != "accepted":
            assert 20 < len(answer["message"]) < 1000, name
            assert "Traceback" not in answer["message"], name
            assert str(outcome.written.parent) not in answer["message"], name


def test_the_code_in_the_files_is_real(tmp_path):
    """The same pickles in the hands of a loader that trusts them do make their file, so that the test can fail."""
    import pickle  # noqa: PLC0415

    from tests.hostile import pickles  # noqa: PLC0415

    for name in ("os-mkdir", "stack-global", "inst", "object", "thrown-away", "method-caller", "attrgetter"):
        marker = tmp_path / name
        pickle.loads(pickles.body(pickles.CALLS[name], marker))
        assert marker.exists(), name


def test_the_watch_sees_what_it_is_there_for(tmp_path):
    watch = Watch(tmp_path)
    watch.upload = "/uploads/it"
    watch("open", ("/etc/passwd", "r", 0))
    assert watch.found == []
    watch.active = True
    for allowed in (
        (watch.upload, "r", 0),
        (str(tmp_path / "x"), "w", 1),
        (3, "r", 0),
        (sys.prefix + "/lib/x", "r", 0),
    ):
        watch("open", allowed)
    assert watch.found == []
    for refused in ((watch.upload, "r+", 0), ("/uploads/other", "r", 0), (sys.prefix + "/lib/x", "w", 0)):
        watch("open", refused)
    watch("os.system", (b"true",))
    watch("socket.connect", (None, "x"))
    assert len(watch.found) == 5
