"""Seconds of coverage-guided fuzzing where atheris is installed, and mutations of good files everywhere."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import targets
from worker.sanitizer.errors import SanitizerError

SECONDS = 2
INTERESTING = (b"", b"\0", b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0" * 8, b"PK\1\2", b"PK\3\4", b"{", b"[", b"]", b'"',
               b"-1", b"1e999", b"null", b"true", b"99999999999999999999", b"..", b"\x80\x02", b"R", b".")  # fmt: skip


@st.composite
def mutations(draw):
    """A list of edits: at which part of the input, how many bytes go, and what comes in their place."""
    piece = st.sampled_from(INTERESTING) | st.binary(max_size=6)
    return draw(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 8), piece), min_size=1, max_size=4))


@pytest.mark.parametrize("name", sorted(targets()))
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 9), edits=mutations())
def test_a_mutated_file_ends_in_a_refusal_or_a_clean_read(name, which, edits, tmp_path):
    target = targets()[name]
    seeds = target.seeds()
    data = bytearray(seeds[which % len(seeds)])
    for share, gone, new in edits:
        start = int(share * len(data))
        data[start : start + gone] = new
    try:
        target.parse(bytes(data), tmp_path / "upload")
    except SanitizerError:
        return


@pytest.mark.parametrize("name", sorted(targets()))
def test_the_good_file_is_read(name, tmp_path):
    if name == "parquet-pages":
        pytest.skip("its seeds are pieces of files")
    for seed in targets()[name].seeds():
        targets()[name].parse(seed, tmp_path / "upload")


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this system")
def test_no_parser_fails_within_seconds_of_guided_fuzzing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--seconds", str(SECONDS), "--findings", str(tmp_path)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["target"] for answer in answers] == list(targets()), done.stderr[-2000:]
    assert [answer for answer in answers if answer["failed"] or not answer["executions"]] == []
