"""The embedded service: migrate, then API, worker and beat as three processes, until one signal ends all of them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from service.client.api import Client

START_SECONDS = 60.0
STOP_SECONDS = 15.0
POLL_SECONDS = 0.1
MAX_PORT = 65535

COMMANDS = {
    "api": [
        "-m",
        "uvicorn",
        "--factory",
        "service.app:create_from_env",
        "--no-access-log",
        "--timeout-graceful-shutdown",
        "5",
    ],
    "worker": ["-m", "worker.app", "worker"],
    "beat": ["-m", "worker.app", "beat"],
}
# The client imports no part of the server, so that it can be used without one.
MIGRATE = "from service.db import migrate; from service.settings import Settings; migrate(Settings.from_env())"
# A process that starts the rest of its arguments, to be ended by the kernel (Linux) when we are killed ourselves.
DIE_WITH_PARENT = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
_ROOT = Path(__file__).resolve().parent.parent.parent
_COLOURS = {"api": "36", "worker": "33", "beat": "35"}


class UpError(Exception):
    """The embedded service could not start, or one of its processes ended."""


class Embedded:
    """The running service: its address, and its processes."""

    def __init__(
        self, data_dir: Path, *, host: str = "127.0.0.1", port: int = 8000, log: IO[str] | None = None
    ) -> None:
        self.port = port or _free_port()
        self.url = f"http://{_reachable(host)}:{self.port}"
        self._host = host
        self._log = log or sys.stderr
        self._environment = dict(os.environ) | {
            "LUSTRATE_DATA_DIR": str(data_dir.absolute()),
            "LUSTRATE_HOST": host,
            "LUSTRATE_LOG": "text",
            "LUSTRATE_PORT": str(self.port),
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")])),
        }
        self._data_dir = data_dir
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._readers: list[threading.Thread] = []

    def start(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Bring the database up to date, start the three, and wait until the API is ready (or `should_stop`).

        Raises:
            UpError: one of them ended, or was not ready in time.
        """
        _check_port(self._host, self.port)
        self._data_dir.mkdir(parents=True, exist_ok=True)
        if migrate(self._environment):
            raise UpError("the database could not be brought up to date")
        for name, arguments in COMMANDS.items():
            address = ["--host", self._host, "--port", str(self.port)] if name == "api" else []
            self._start(name, [sys.executable, "-c", DIE_WITH_PARENT, *arguments, *address])
        self._wait_until_ready(should_stop)
        self.check()

    def watch(self, should_stop: Callable[[], bool]) -> None:
        """Return when `should_stop`.

        Raises:
            UpError: one of the processes ended before.
        """
        while not should_stop():
            self.check()
            time.sleep(POLL_SECONDS)

    def check(self) -> None:
        """Raise UpError if one of the processes has ended."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise UpError(f"{name} ended with status {process.returncode}; its last lines are above")

    def stop(self) -> None:
        """Stop the three: asked first, killed when they do not hear. A running job is handed back to the queue."""
        for process in self._processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for name, process in self._processes.items():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._print(name, f"did not stop within {STOP_SECONDS:g} seconds: killed")
                process.kill()
                process.wait()
        for reader in self._readers:
            reader.join(timeout=5)
        for process in self._processes.values():
            if process.stdout is not None:
                process.stdout.close()

    def _start(self, name: str, command: list[str]) -> None:
        process = subprocess.Popen(  # noqa: S603 - our own modules
            command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # A process group of its own: Ctrl-C reaches this process alone, which stops the three in order.
            start_new_session=True,
        )
        self._processes[name] = process
        reader = threading.Thread(target=self._copy, args=(name, process.stdout), daemon=True)
        reader.start()
        self._readers.append(reader)

    def _copy(self, name: str, lines: IO[str]) -> None:
        with contextlib.suppress(ValueError):  # closed while we read: it was killed
            for line in lines:
                self._print(name, line.rstrip("\n"))

    def _print(self, name: str, line: str) -> None:
        label = f"{name:<6} |"
        if self._log.isatty():
            label = f"\033[{_COLOURS[name]}m{label}\033[0m"
        self._log.write(f"{label} {line}\n")
        self._log.flush()

    def _wait_until_ready(self, should_stop: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        with Client(self.url) as client:
            while not client.is_ready() and not should_stop():
                self.check()
                if time.monotonic() > deadline:
                    raise UpError(f"the API was not ready within {START_SECONDS:g} seconds")
                time.sleep(POLL_SECONDS)


@contextmanager
def embedded(data_dir: Path, *, port: int = 0, log: IO[str] | None = None) -> Iterator[Embedded]:
    """Have the service run within the block."""
    service = Embedded(data_dir, port=port, log=log)
    try:
        service.start()
        yield service
    finally:
        service.stop()


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into an answer to a question, within the block. A second Ctrl-C stops nothing sooner."""
    asked = threading.Event()
    before = {number: signal.signal(number, lambda *_: asked.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def up(data_dir: Path, *, host: str, port: int) -> int:
    """Run the embedded service until Ctrl-C or SIGTERM. Returns the exit status."""
    service = Embedded(data_dir, host=host, port=port)
    with stop_signals() as should_stop:
        try:
            service.start(should_stop)
            if should_stop():
                return 0
            sys.stdout.write(f"Lustrate is ready at {service.url} (API: {service.url}/docs). Ctrl-C stops it.\n")
            sys.stdout.flush()
            service.watch(should_stop)
        except UpError as error:
            sys.stderr.write(f"lustrate: {error}\n")
            return 1
        finally:
            service.stop()
    return 0


def migrate(environment: Mapping[str, str]) -> int:
    """Bring the database of the environment's settings up to date, in a process of its own. Returns its exit status."""
    return subprocess.run([sys.executable, "-c", MIGRATE], env=environment, check=False).returncode  # noqa: S603


def _reachable(host: str) -> str:
    """Return what a URL says for the address that a server listens on."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - where we connect, not where we listen
    return f"[{host}]" if ":" in host else host


def _check_port(host: str, port: int) -> None:
    """Refuse a port that there is not, and one that somebody else has, whose answers we would take for our own."""
    if not 0 <= port <= MAX_PORT:
        raise UpError(f"port {port} does not exist: take one of 1 to {MAX_PORT}, or 0 for any that is free")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UpError(f"cannot listen on {host} port {port}: {error.strerror}; try --port 0") from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
