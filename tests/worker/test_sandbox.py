"""What a confined process can still do. Each protection is tried where this machine has it, and skipped where not."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from worker import landlock, sandbox, supervisor
from worker.process import Process

ROOT = Path(__file__).resolve().parent.parent.parent

# Tries everything that a taken-over parser would, and tells what it got.
ATTEMPTS = """
import ctypes, json, os, resource, socket, sys
from pathlib import Path
from worker import sandbox

active = sandbox.confine(sandbox.area(sys.argv[1:4]))
got = {}

def attempt(name, do):
    try:
        got[name] = do()
    except Exception as error:
        got[name] = type(error).__name__

inputs, outputs, home = map(Path, sys.argv[1:4])
secret = Path(sys.argv[4])

def connect():
    with socket.socket() as client:
        client.settimeout(2)
        client.connect(("127.0.0.1", int(sys.argv[5])))
    return "connected"

attempt("read input", lambda: (inputs / "file").read_text())
attempt("write input", lambda: (inputs / "file").write_text("changed"))
attempt("unlock input", lambda: [inputs.chmod(0o700), (inputs / "file").chmod(0o600), (inputs / "new").touch()][2])
attempt("write output", lambda: (outputs / "file").write_text("result"))
attempt("write home", lambda: (home / "file").write_text("notes"))
attempt("link out", lambda: os.link(secret, home / "linked"))
attempt("read secret", lambda: secret.read_text())
attempt("list secret", lambda: os.listdir(secret.parent))
attempt("write elsewhere", lambda: Path(secret.parent, "mine").write_text("x"))
attempt("connect", connect)
attempt("mount", lambda: ctypes.CDLL(None, use_errno=True).mount(b"none", os.fsencode(home), b"tmpfs", 0, None))
attempt("signal", lambda: os.kill(int(sys.argv[6]), 0))
attempt("parent", lambda: Path(f"/proc/{sys.argv[6]}/environ").read_bytes().decode(errors="replace"))
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
got["no new privileges"] = status["NoNewPrivs"].strip()
got["capabilities"] = int(status["CapEff"], 16)
got["core"] = resource.getrlimit(resource.RLIMIT_CORE)
got["files"] = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
got["session"] = os.getsid(0) == os.getpid()
print(json.dumps({"active": active, "got": got}))
"""


@pytest.fixture
def area(tmp_path):
    staging = tmp_path / "staging"
    made = sandbox.Area(staging / "in", staging / "out", staging / "child-1")
    for folder in (made.inputs, made.outputs, made.home):
        folder.mkdir(parents=True)
    (made.inputs / "file").write_text("an upload")
    (made.inputs / "file").chmod(0o400)
    made.inputs.chmod(0o500)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file").write_text("another tenant's")
    yield made
    made.inputs.chmod(0o700)


@pytest.fixture
def listening():
    import socket  # noqa: PLC0415

    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def attempt(area, listening, container=(), **environment):
    """Run the attempts under the same command line as a child's, and return what was active and what they got."""
    secret = area.home.parent.parent / "secret" / "file"
    arguments = [*area.arguments(), str(secret), str(listening), str(os.getpid())]
    done = subprocess.run(
        [*container, sys.executable, "-P", "-s", "-c", ATTEMPTS, *arguments],
        env={"PATH": os.environ["PATH"], "HOME": str(area.home), "PYTHONPATH": str(ROOT)} | environment,
        cwd=area.home, capture_output=True, text=True, start_new_session=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    return set(answer["active"]), answer["got"]


def test_rlimits_privileges_and_its_own_session(area, listening):
    active, got = attempt(area, listening)
    assert set(sandbox.ALWAYS) <= active
    assert got["core"] == [0, 0]
    assert got["files"] <= sandbox.MAX_OPEN_FILES
    assert got["session"]
    assert ("no_new_privileges" in active) == (got["no new privileges"] == "1")
    if "capabilities_dropped" in active:
        assert got["capabilities"] & ~sandbox._KEPT_OF_ROOT == 0
    assert got["read input"] == "an upload"
    assert (got["write output"], got["write home"]) == (6, 5)
    assert (area.outputs / "file").read_text() == "result"


def test_nothing_can_be_reached_over_the_network(area, listening):
    active, got = attempt(area, listening)
    if "no_network" not in active:
        pytest.skip("this system lets no process leave its network")
    assert got["connect"] != "connected"


def test_files_elsewhere_are_out_of_reach_and_inputs_read_only(area, listening):
    if landlock.version() == 0:
        pytest.skip("this kernel has no Landlock")
    active, got = attempt(area, listening)
    assert "filesystem_rules" in active
    for what in ("write input", "unlock input", "read secret", "list secret", "write elsewhere"):
        assert got[what] == "PermissionError", what
    assert got["link out"] in {"PermissionError", "OSError"}
    assert got["mount"] == -1
    assert got["parent"] in {"PermissionError", "FileNotFoundError"}
    assert (area.inputs / "file").read_text() == "an upload"
    assert not (area.inputs / "new").exists()


def test_processes_outside_cannot_be_signalled(area, listening):
    if landlock.version() < landlock._SINCE_SCOPES:
        pytest.skip("this kernel's Landlock has no scopes")
    assert attempt(area, listening)[1]["signal"] == "PermissionError"


def test_without_an_area_files_are_not_said_to_be_confined():
    program = "from worker import sandbox; print(*sandbox.confine(sandbox.area([])))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, start_new_session=True
    )
    assert "rlimits" in done.stdout
    assert "filesystem_rules" not in done.stdout


def test_a_probe_tells_what_a_child_would(tmp_path):
    active = supervisor.probe(tmp_path / "staging")
    assert set(sandbox.ALWAYS) <= set(active) <= set(sandbox.PROTECTIONS)
    assert list(active) == [name for name in sandbox.PROTECTIONS if name in active]
    assert (landlock.version() > 0) == ("filesystem_rules" in active)


@pytest.fixture
def bwrap():
    sandbox.bubblewrap.cache_clear()
    program = sandbox.bubblewrap()
    sandbox.bubblewrap.cache_clear()
    if program is None:
        pytest.skip("bubblewrap is not installed, or may make no container here")
    return program


def test_a_container_holds_nothing_but_what_a_child_needs(area, listening, bwrap):
    active, got = attempt(area, listening, sandbox.container(bwrap, area, "worker.child"))
    assert {"bubblewrap", "no_network"} <= active
    assert got["connect"] != "connected"
    for what in ("read secret", "list secret"):
        assert got[what] in {"PermissionError", "FileNotFoundError"}
    for what in ("write input", "unlock input"):
        assert got[what] in {"PermissionError", "OSError"}
    assert got["signal"] in {"PermissionError", "ProcessLookupError"}
    assert (area.outputs / "file").read_text() == "result"


def test_a_child_in_a_container_can_import_torch(tmp_path, bwrap):
    process = Process(tmp_path / "staging")
    try:
        assert process._is_contained
        process.send(b"{}\n")
        lines = []
        while not process.has_ended():
            lines += process.read_lines(0.1, max_total_bytes=1 << 20)
        lines += process.read_last_lines(max_total_bytes=1 << 20)
        log = process.log_tail()
    finally:
        process.kill()
    assert b"bubblewrap" in lines[0], log
    assert b"internal_error" in lines[1], log  # {} is no request, and only torch's own errors are asked for before that
    assert "ValidationError" in log
    assert bwrap


def test_without_bubblewrap_nothing_is_put_before_the_command(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    sandbox.bubblewrap.cache_clear()
    assert sandbox.bubblewrap() is None
    sandbox.bubblewrap.cache_clear()


def test_a_bubblewrap_that_may_make_no_container_is_not_used(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: shutil.os.path.realpath("/bin/false"))
    sandbox.bubblewrap.cache_clear()
    assert sandbox.bubblewrap() is None
    sandbox.bubblewrap.cache_clear()


def test_what_can_be_read_is_code_and_libraries_and_not_the_data():
    found = sandbox.readable("worker.child")
    assert ROOT not in found
    assert ROOT / "worker" in found
    assert all(path.exists() for path in found)
