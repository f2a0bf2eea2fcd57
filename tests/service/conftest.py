"""The application under test, and files that look like what they should."""

import contextlib
import io
import json
import warnings
import zipfile

import pytest

from service import blobs, jobs
from service.app import create_app
from service.settings import Settings

with warnings.catch_warnings():
    # Starlette announces httpx2 for its TestClient; our own client is built on httpx, and both work.
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient

ARCHITECTURE = {"name": "small_resnet", "num_classes": 10, "in_channels": 1}
INPUT = {"height": 28, "width": 28, "mean": [0.5], "std": [0.5]}


def safetensors_bytes(payload=b"\x00" * 16):
    """A small well-formed safetensors file."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [len(payload)], "data_offsets": [0, len(payload)]}}).encode()
    return len(header).to_bytes(8, "little") + header + payload


def zip_bytes(*names):
    """A zip archive with these members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return buffer.getvalue()


class Api:
    """The client that tests use: a TestClient and the steps that most tests begin with."""

    def __init__(self, http, app):
        self.http = http
        self.app = app
        self.sessions = app.state.resources.sessions
        self.settings = app.state.resources.settings

    def model(self, content=None, **changes):
        body = {"name": "suspect", "architecture": ARCHITECTURE, "input": INPUT} | changes
        created = self.http.post("/v1/models", json=body)
        assert created.status_code == 201, created.text
        return self._with_content(created.json(), content)

    def dataset(self, content=None, kind="clean", **changes):
        created = self.http.post("/v1/datasets", json={"kind": kind} | changes)
        assert created.status_code == 201, created.text
        return self._with_content(created.json(), content)

    def job_body(self, **changes):
        model = self.model(safetensors_bytes(b"weights"))
        clean = self.dataset(safetensors_bytes(b"images"))
        return {"model_id": model["id"], "clean_dataset_id": clean["id"]} | changes

    def job(self, **changes):
        answer = self.http.post("/v1/jobs", json=self.job_body(**changes))
        assert answer.status_code == 202, answer.text
        return answer.json()

    def claim(self, job):
        claim = jobs.claim(self.sessions, job["id"], "worker", lease_seconds=60, max_attempts=3)
        assert claim is not None
        return claim

    def succeeded_job(self, checkpoint=b"sanitized", report_json='{"schema_version": 1}', figures=None, **changes):
        job = self.job(**changes)
        sha256, size = blobs.write(self.sessions, "local", [checkpoint])
        assert jobs.succeed(
            self.sessions,
            self.claim(job),
            report_json=report_json,
            checkpoint_sha256=sha256,
            checkpoint_size=size,
            figures=[self._figure(name, data) for name, data in (figures or {}).items()],
        )
        return job

    def _figure(self, name, data):
        sha256, size = blobs.write(self.sessions, "local", [data])
        return jobs.Figure(name=name, title=f"About {name}", media_type="image/png", sha256=sha256, size=size)

    def _with_content(self, resource, content):
        if content is None:
            return resource
        answer = self.http.put(resource["links"]["content"], content=content)
        assert answer.status_code == 200, answer.text
        return answer.json()


def open_api(settings):
    """An application and its client, as a context manager."""
    app = create_app(settings)
    return app, TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)


@pytest.fixture
def api(sqlite_settings):
    """The application over SQLite and the filesystem queue."""
    app, client = open_api(sqlite_settings)
    with client:
        yield Api(client, app)


@pytest.fixture
def any_api(settings):
    """The application over each database in turn."""
    app, client = open_api(settings)
    with client:
        yield Api(client, app)


@pytest.fixture
def refused():
    """Check that an answer is a problem document with this status and code, and return it."""

    def _refused(answer, status, code):
        assert answer.headers["content-type"] == "application/problem+json", answer.text
        document = answer.json()
        assert (answer.status_code, document["code"]) == (status, code), document
        assert document["status"] == status
        assert document["type"].endswith(code)
        assert document["title"]
        assert document["detail"]
        assert answer.headers["x-request-id"]
        return document

    return _refused


@pytest.fixture
def safetensors():
    """Makes small well-formed safetensors files."""
    return safetensors_bytes


@pytest.fixture
def zipped():
    """Makes small zip archives."""
    return zip_bytes


@pytest.fixture
def connect(tmp_path):
    """Makes applications with these settings; nothing migrates their databases."""
    with contextlib.ExitStack() as stack:

        def _connect(**changes):
            values = {"database_url": f"sqlite:///{tmp_path / 'lustrate.db'}", "broker_url": "filesystem://"} | changes
            app, client = open_api(Settings(data_dir=tmp_path, **values))
            stack.enter_context(client)
            return Api(client, app)

        yield _connect
