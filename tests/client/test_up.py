import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service.client import up as up_module
from service.client.up import Embedded, UpError, stop_signals

ROOT = Path(__file__).resolve().parent.parent.parent


def test_importing_the_command_imports_neither_torch_nor_the_server():
    program = (
        "import sys, service.client.main; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'sqlalchemy', 'celery', 'fastapi', 'service.app')))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_a_port_that_is_taken_ends_the_start_with_a_reason(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "service.client.main", "up", "--data-dir", str(tmp_path), "--port", port]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert f"port {port}" in result.stderr


def test_a_remote_address_is_refused(tmp_path):
    command = [sys.executable, "-m", "service.client.main", "up", "--data-dir", str(tmp_path), "--host", "0.0.0.0"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LUSTRATE_")}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert "LUSTRATE_ALLOW_REMOTE" in result.stderr


def test_a_process_that_does_not_hear_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(up_module, "STOP_SECONDS", 0.3)
    with (tmp_path / "log").open("w+") as log:
        service = Embedded(tmp_path, port=0, log=log)
        deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); "
        service._start("api", [sys.executable, "-c", deaf + "time.sleep(600)"])
        deadline = time.monotonic() + 20
        while "deaf" not in (tmp_path / "log").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        service.stop()
        assert service._processes["api"].returncode == -9
    with pytest.raises(UpError, match="api ended with status -9"):
        service.check()


def test_signals_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with stop_signals() as should_stop:
        assert not should_stop()
        signal.raise_signal(signal.SIGTERM)
        assert should_stop()
    assert signal.getsignal(signal.SIGTERM) is before
