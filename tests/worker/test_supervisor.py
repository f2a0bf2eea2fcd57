import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from worker import sandbox
from worker import supervisor as supervisor_module
from worker.protocol import Progress
from worker.supervisor import Kind, Limits, Supervisor, Tick

ROOT = Path(__file__).resolve().parent.parent.parent
FAKE = "tests.worker.fake_child"
GENEROUS = Limits(deadline_seconds=60, memory_bytes=1 << 33)


@pytest.fixture
def supervisor(tmp_path):
    supervisor = Supervisor(tmp_path / "staging", module=FAKE)
    yield supervisor
    supervisor.close()
    assert list((tmp_path / "staging").iterdir()) == []


def run(supervisor, fault, argument=None, *, limits=GENEROUS, on_tick=lambda _: Tick.CONTINUE, **more):
    return supervisor.run({"fault": fault, "argument": argument}, limits=limits, on_tick=on_tick, **more)


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def is_alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def marked(folder):
    """The processes whose private folder is below this one."""
    found = psutil.process_iter(["environ"])
    return [process for process in found if str(folder) in (process.info["environ"] or {}).get("HOME", "")]


def test_a_job_that_ends_well_succeeds(supervisor):
    outcome = run(supervisor, "succeed")
    assert outcome.kind is Kind.SUCCEEDED
    assert outcome.protections == ("rlimits",)


def test_a_refusal_keeps_its_code_and_its_sentence(supervisor):
    outcome = run(supervisor, "refuse")
    assert (outcome.kind, outcome.code, outcome.message) == (Kind.FAILED, "not_a_checkpoint", "no")


@pytest.mark.parametrize("fault", ["garbage", "lies", "flood", "succeed_twice"])
def test_a_child_that_breaks_the_protocol_has_crashed(supervisor, fault):
    outcome = run(supervisor, fault)
    assert (outcome.kind, outcome.code) == (Kind.CRASHED, "worker_crashed")


def test_a_flooded_log_blocks_nobody_and_only_its_end_is_kept(supervisor):
    outcome = run(supervisor, "flood_log")
    assert outcome.kind is Kind.SUCCEEDED
    assert outcome.log_tail.endswith("ythe end")
    assert len(outcome.log_tail) <= 16 * 1024


def test_many_progress_lines_become_few_ticks(supervisor):
    ticks = []

    def on_tick(progress):
        ticks.append(progress)
        return Tick.CONTINUE

    outcome = run(supervisor, "many_progress", on_tick=on_tick)
    assert outcome.kind is Kind.SUCCEEDED
    assert len(ticks) <= 1 + outcome.seconds / supervisor_module.TICK_SECONDS


@pytest.mark.parametrize("fault", ["hang", "ignore_sigterm", "close_everything"])
def test_a_child_that_does_not_end_meets_the_deadline(supervisor, fault):
    outcome = run(supervisor, fault, limits=Limits(deadline_seconds=1, memory_bytes=1 << 33))
    assert (outcome.kind, outcome.code) == (Kind.FAILED, "deadline_exceeded")
    assert outcome.seconds < 5


@pytest.mark.parametrize("fault", ["memory", "grandchild_memory"])
def test_memory_above_the_ceiling_ends_the_job_with_its_code(supervisor, fault):
    outcome = run(supervisor, fault, 300, limits=Limits(deadline_seconds=30, memory_bytes=200 << 20))
    assert (outcome.kind, outcome.code) == (Kind.FAILED, "memory_limit_exceeded")
    assert outcome.peak_memory_bytes > 200 << 20


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGTERM])
def test_death_by_signal_is_a_crash(supervisor, number):
    outcome = run(supervisor, "signal", int(number))
    assert (outcome.kind, outcome.code) == (Kind.CRASHED, "worker_crashed")
    assert f"signal {int(number)}" in outcome.message


@pytest.mark.parametrize("status", [0, 1])
def test_an_exit_without_a_result_is_a_crash(supervisor, status):
    outcome = run(supervisor, "exit", status)
    assert outcome.kind is Kind.CRASHED
    assert f"status {status} without a result" in outcome.message


def test_a_child_that_hangs_in_its_exit_has_succeeded_all_the_same(supervisor, monkeypatch):
    monkeypatch.setattr(supervisor_module, "EXIT_SECONDS", 0.2)
    assert run(supervisor, "succeed_and_hang").kind is Kind.SUCCEEDED


@pytest.mark.parametrize("then", ["crash", "succeed", "hang"])
def test_no_descendant_outlives_the_job(supervisor, tmp_path, then):
    limits = Limits(deadline_seconds=2, memory_bytes=1 << 33)
    if sandbox.bubblewrap() is not None:
        # In a container neither its numbers of processes nor this folder are ours: look for its mark instead.
        run(supervisor, "grandchildren", {"pids_path": "/tmp/pids", "then": then}, limits=limits)
        wait_until(lambda: not marked(tmp_path))
        return
    path = tmp_path / "pids"
    run(supervisor, "grandchildren", {"pids_path": str(path), "then": then}, limits=limits)
    for pid in json.loads(path.read_text()):
        wait_until(lambda pid=pid: not is_alive(pid))


@pytest.mark.parametrize(("answer", "kind"), [(Tick.CANCEL, Kind.CANCELLED), (Tick.ABANDON, Kind.ABANDONED)])
def test_the_caller_can_end_a_job(supervisor, answer, kind):
    assert run(supervisor, "hang", on_tick=lambda _: answer).kind is kind


def test_a_slow_tick_does_not_hold_up_the_limits(supervisor):
    began = time.monotonic()

    def on_tick(_):
        wait_until(lambda: time.monotonic() > began + 1.5)
        return Tick.CONTINUE

    outcome = run(supervisor, "hang", limits=Limits(deadline_seconds=0.3, memory_bytes=1 << 33), on_tick=on_tick)
    assert outcome.code == "deadline_exceeded"
    assert outcome.seconds < 1.2


def test_shutting_down_interrupts_the_job(supervisor):
    assert run(supervisor, "hang", should_stop=lambda: True).kind is Kind.INTERRUPTED


def test_the_tick_sees_the_latest_progress(supervisor):
    seen = []

    def on_tick(progress):
        seen.append(progress)
        return Tick.CONTINUE if progress is None else Tick.CANCEL

    run(supervisor, "succeed", on_tick=on_tick)
    assert all(progress in (None, Progress("profile", 1, 2)) for progress in seen)


def test_one_bad_job_leaves_the_next_one_well(supervisor):
    run(supervisor, "signal", int(signal.SIGSEGV))
    run(supervisor, "flood")
    assert run(supervisor, "succeed").kind is Kind.SUCCEEDED


def test_a_dead_spare_is_replaced(supervisor):
    supervisor.warm()
    spare = supervisor._spare
    os.kill(spare.pid, signal.SIGKILL)
    wait_until(spare.has_ended)
    assert run(supervisor, "succeed").kind is Kind.SUCCEEDED


def test_a_child_has_no_credentials_and_a_folder_of_its_own(supervisor, tmp_path, monkeypatch):
    monkeypatch.setenv("LUSTRATE_DATABASE_URL", "postgresql://user:secret@host/db")
    monkeypatch.setenv("LUSTRATE_BROKER_URL", "redis://:secret@host")
    monkeypatch.setenv("PGPASSWORD", "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    outcome = run(supervisor, "environment")
    child = json.loads(outcome.message)
    assert "secret" not in outcome.message
    assert child["OMP_NUM_THREADS"] == "1"
    assert child["PYTHONHASHSEED"] == "0"
    assert int(child["MALLOC_MMAP_THRESHOLD_"]) > 1 << 20
    assert Path(child["cwd"]).parent == tmp_path / "staging"
    assert child["HOME"] == child["TMPDIR"] == child["cwd"]
    assert not Path(child["cwd"]).exists()


WORKER = """
import sys
from pathlib import Path
from worker.supervisor import Limits, Supervisor, Tick
supervisor = Supervisor(Path(sys.argv[1]), module=sys.argv[2])
print(supervisor.warm().pid, flush=True)
if sys.argv[3] == "spare":
    sys.stdin.read()
limits = Limits(deadline_seconds=60, memory_bytes=1 << 40)
supervisor.run({"fault": "hang"}, limits=limits, on_tick=lambda _: Tick.CONTINUE)
"""


def test_a_spare_dies_with_its_killed_supervisor(tmp_path):
    command = [sys.executable, "-c", WORKER, str(tmp_path), "worker.child", "spare"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        child = int(worker.stdout.readline())
        assert is_alive(child)
        worker.kill()
    wait_until(lambda: not is_alive(child))
