import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from service.client.demo import bundled_inputs
from worker import sandbox
from worker.protocol import Progress, Refused, Request, Started, Succeeded, decode
from worker.results import read_figures, read_preview, read_report
from worker.sanitizer.checkpoint import read
from worker.sanitizer.spec import ArchitectureSpec, FixedFraction, InputSpec, SanitizeSpec
from worker.supervisor import Kind, Limits, Tick

ROOT = Path(__file__).resolve().parent.parent.parent
LIMITS = Limits(deadline_seconds=120, memory_bytes=8 << 30)
# As little work as a whole job can be.
SPEC = SanitizeSpec(recipe="prune", inputs="clean", scope="last_conv", selection=FixedFraction(fraction=0.1))


@pytest.fixture
def out(staging):
    return staging / "out"


@pytest.fixture
def make_request(staging, out):
    """The bundled job; `changes` spoil it."""

    def make_request(**changes):
        inputs = bundled_inputs()
        metadata = inputs.metadata
        for name, path in (("checkpoint", inputs.checkpoint), ("clean", inputs.clean)):
            if not (staging / "in" / name).exists():
                shutil.copy(path, staging / "in" / name)
        values = {
            "checkpoint_path": str(staging / "in" / "checkpoint"),
            "clean_path": str(staging / "in" / "clean"),
            "triggered_path": None,
            "target_class": None,
            "output_path": str(out / "output"),
            "report_path": str(out / "report.json"),
            "figures_path": str(out / "figures"),
            "architecture": ArchitectureSpec(**metadata["architecture"]),
            "input": InputSpec(**metadata["input"]),
            "spec": SPEC,
            "threads": 1,
            "max_file_bytes": 64 << 20,
        }
        return Request(**(values | changes)).to_payload()

    return make_request


def run(supervisor, payload, on_tick=lambda _: Tick.CONTINUE):
    return supervisor.run(payload, limits=LIMITS, on_tick=on_tick)


def test_a_whole_job_leaves_a_checkpoint_and_a_report_and_tells_its_progress(supervisor, make_request, out):
    progress = []

    def on_tick(latest):
        progress.append(latest)
        return Tick.CONTINUE

    outcome = run(supervisor, make_request(), on_tick)
    assert outcome.kind is Kind.SUCCEEDED, outcome
    report = json.loads((out / "report.json").read_text())
    assert report["environment"]["num_threads"] == 1
    assert set(sandbox.ALWAYS) <= set(report["environment"]["protections"]) == set(outcome.protections)
    assert read(out / "output").tensors.keys() == read(bundled_inputs().checkpoint).tensors.keys()
    assert any(isinstance(latest, Progress) for latest in progress)
    infos = read_report(out / "report.json").figures
    assert [info.name for info in infos] == ["gradcam"]  # no sweep and no trigger samples: nothing else to show
    assert len(list(read_figures(out / "figures", infos))) == len(infos)


def test_a_preview_leaves_its_report_and_nothing_else(supervisor, make_request, out):
    outcome = run(supervisor, make_request(kind="preview"))
    assert outcome.kind is Kind.SUCCEEDED, outcome
    found = read_preview(out / "report.json")
    assert found.num_images > 100
    assert found.accuracy.value > 0.8
    assert not found.would_be_refused
    assert not (out / "output").exists()


def test_a_refusal_of_the_library_reaches_the_caller_with_its_code(supervisor, make_request, staging, out):
    garbage = staging / "in" / "garbage"
    garbage.write_bytes(b"\x80\x04 a pickle, or so" * 100)
    outcome = run(supervisor, make_request(checkpoint_path=str(garbage)))
    assert outcome.kind is Kind.FAILED
    assert outcome.code not in {"internal_error", "sanitizer_error", ""}
    assert not (out / "output").exists()


def test_a_device_that_is_not_there_is_refused(supervisor, make_request, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    payload = make_request()
    payload["spec"]["device"] = "cuda"
    outcome = run(supervisor, payload)
    assert (outcome.kind, outcome.code) == (Kind.FAILED, "device_not_available")


def test_an_output_above_its_limit_does_not_fill_the_disk(supervisor, make_request, out):
    outcome = run(supervisor, make_request(max_file_bytes=10_000))
    assert outcome.kind in {Kind.FAILED, Kind.CRASHED}
    assert not (out / "output").exists() or (out / "output").stat().st_size <= 10_000


def start(folder):
    return subprocess.Popen(
        [sys.executable, "-m", "worker.child"],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def test_the_end_of_its_input_ends_a_waiting_child(tmp_path):
    with start(tmp_path) as child:
        child.stdin.close()
        assert child.wait(60) == 0


def test_the_end_of_its_input_ends_a_working_child(tmp_path, make_request):
    with start(tmp_path) as child:
        child.stdin.write(json.dumps(make_request(spec=SanitizeSpec())).encode() + b"\n")
        child.stdin.flush()
        assert isinstance(decode(child.stdout.readline()), Started)
        child.stdin.close()
        assert child.wait(30) == -signal.SIGKILL


def test_what_is_printed_does_not_reach_the_events(make_request):
    program = (
        "import os, runpy, sys, worker.sanitizer.sanitize as module\n"
        "def sanitize(*, progress, **_):\n"
        '    print(\'{"event":"succeeded"}\', flush=True)\n'
        "    os.write(1, b'garbage from C\\n')\n"
        "    os.system('echo garbage from a program')\n"
        "    progress('profile', 1, 1)\n"
        "    raise module.InvalidSpecError('no')\n"
        "module.sanitize = sanitize\n"
        "import worker.child\n"
        "sys.exit(worker.child.main())\n"
    )
    line = json.dumps(make_request()).encode() + b"\n"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as child:
        child.stdin.write(line)
        child.stdin.flush()
        events = [decode(text) for text in child.stdout.read().splitlines()]
        log = child.stderr.read()
    assert events[1:] == [Progress("profile", 1, 1), Refused("invalid_spec", "no")]
    assert Succeeded() not in events
    assert log.count(b"garbage") == 2


def test_a_job_has_limits_of_its_own_beside_the_supervisors(supervisor, make_request):
    outcome = run(supervisor, make_request(memory_bytes=64 << 20))
    assert (outcome.kind, outcome.code) == (Kind.FAILED, "memory_limit_exceeded")
    outcome = run(supervisor, make_request(spec=SanitizeSpec(), cpu_seconds=1))
    assert (outcome.kind, outcome.code) == (Kind.CRASHED, "worker_crashed")
    assert "signal" in outcome.message
