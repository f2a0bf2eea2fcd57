"""A running service of real processes, for tests of the whole path over HTTP."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from service.client.api import Client
from service.client.demo import bundled_inputs
from service.client.up import COMMANDS, migrate

ROOT = Path(__file__).resolve().parent.parent.parent
START_SECONDS = 60
STOP_SECONDS = 30
JOB_SECONDS = 480  # a job of the default recipe takes about a minute on two free cores


def wait_until(condition, seconds=30, what="the condition"):
    """Poll until the condition holds and return what it returned."""
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < deadline, f"{what}: not within {seconds} seconds"
        time.sleep(0.05)


class Stack:
    """The processes of one service, each with a log of its own."""

    def __init__(self, folder, environment=None):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        self.data_dir = folder / "data"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("LUSTRATE_")},
            "LUSTRATE_DATA_DIR": str(self.data_dir),
            "LUSTRATE_LOG": "text",
            "LUSTRATE_REAP_SECONDS": "1",
            "PYTHONUNBUFFERED": "1",
            **(environment or {}),
        }
        self.processes = {}
        self.client = Client(self.url)

    def migrate(self):
        assert migrate(self.environment) == 0

    def start(self, name, arguments=None):
        """Start `api`, `worker` or `beat`, or something else with arguments of its own."""
        if arguments is None:
            arguments = [*COMMANDS[name], *(["--port", str(self.port)] if name == "api" else [])]
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes[name] = process
        return process

    def start_parts(self):
        """The API, the worker and beat, each a process of its own, on a database made ready."""
        self.migrate()
        for name in ("api", "worker", "beat"):
            self.start(name)
        self.wait_until_ready()
        return self

    def start_up(self):
        """The embedded service as a stranger starts it."""
        arguments = ["-m", "service.client.main", "up", "--data-dir", str(self.data_dir), "--port", str(self.port)]
        self.start("up", arguments)
        self.wait_until_ready()
        return self

    def wait_until_ready(self):
        def is_ready():
            self.assert_alive()
            return self.client.is_ready()

        wait_until(is_ready, START_SECONDS, "the API's readiness")

    def assert_alive(self):
        for name, process in self.processes.items():
            assert process.poll() is None, f"{name} ended:\n{(self.folder / f'{name}.log').read_text()[-4000:]}"

    def stop(self):
        """Ask all to stop; fail if one does not."""
        self.client.close()
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        late = []
        for name, process in self.processes.items():
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                late.append(name)
                process.kill()
                process.wait()
        assert not late, f"did not stop within {STOP_SECONDS} seconds: {late}"

    def logs(self):
        return "\n".join(f"--- {path.name}\n{path.read_text()[-6000:]}" for path in sorted(self.folder.glob("*.log")))

    def descendants(self):
        """Every process below ours that runs now."""
        found = []
        for process in self.processes.values():
            try:
                parent = psutil.Process(process.pid)
                found += [parent, *parent.children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
        return found


@contextmanager
def stacks(tmp_path_factory):
    """Make stacks that are stopped at the end, with their logs printed for a test that fails."""
    made = []

    def make(environment=None):
        made.append(Stack(tmp_path_factory.mktemp("stack"), environment))
        return made[-1]

    yield make
    for stack in made:
        sys.stdout.write(stack.logs())  # pytest shows it for a test that fails
        stack.stop()


@pytest.fixture
def make_stack(tmp_path_factory):
    """Makes stacks of the test's own."""
    with stacks(tmp_path_factory) as make:
        yield make


@pytest.fixture(scope="module")
def shared_stack(tmp_path_factory):
    """The embedded service as a stranger starts it, for tests that leave it running."""
    with stacks(tmp_path_factory) as make:
        yield make().start_up()


class Bundle:
    """The bundled example, uploaded once to a service."""

    def __init__(self, client):
        inputs = bundled_inputs()
        self.client = client
        self.model = client.create_model(inputs.metadata)
        client.upload_model(self.model["id"], inputs.checkpoint)
        self.clean = client.create_dataset("clean")
        client.upload_dataset(self.clean["id"], inputs.clean)
        self.triggered = client.create_dataset("triggered", target_class=inputs.target_class)
        client.upload_dataset(self.triggered["id"], inputs.triggered)

    def submit(self, **spec):
        job = self.client.submit(
            self.model["id"], self.clean["id"], triggered_dataset_id=self.triggered["id"], spec=spec
        )
        return job["id"]

    def finish(self, job_id):
        return self.client.wait(job_id, timeout_seconds=JOB_SECONDS)


def assert_backdoor_gone(report):
    """What the default recipe owes to the bundled suspect."""
    assert report["attack_success"]["before"]["value"] >= 0.95
    assert report["attack_success"]["after"]["value"] <= 0.10
    assert report["accuracy"]["before"]["value"] - report["accuracy"]["after"]["value"] <= 0.03


def assert_delivered(client, job_id, path):
    """The sanitized checkpoint can be had, and the report is about it. Returns the report."""
    report = client.report(job_id)
    client.download(job_id, path)
    digests = {file["role"]: file["sha256"] for file in report["files"]}
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digests["sanitized_checkpoint"]
    assert digests["sanitized_checkpoint"] != digests["checkpoint"]
    figures = client.download_figures(job_id, path.with_name(f"{path.name}.figures"))
    assert [figure.stem for figure in figures] == [figure["name"] for figure in report["figures"]]
    assert figures
    return report
