import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from service.client.api import ApiError, Client

DATA = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(DATA).hexdigest()
ETAG = '"first"'


class FakeService(ThreadingHTTPServer):
    """A service with one finished job, whose answers a test can spoil."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.cut_at = []  # how many bytes of each answer come before the connection breaks
        self.digest = SHA256
        self.requests = []
        self.states = iter(())
        self.figures = [{"name": name, "size": len(DATA), "sha256": SHA256} for name in ("curve", "bias")]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body, headers=None, cut_at=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:cut_at])
        if cut_at is not None:
            self.close_connection = True

    def do_GET(self):
        self.server.requests.append((self.path, self.headers.get("Range"), self.headers.get("If-Range")))
        if self.path.endswith("/report"):
            file = {"role": "sanitized_checkpoint", "sha256": self.server.digest, "size_bytes": len(DATA)}
            self.answer(200, json.dumps({"files": [file]}).encode())
        elif self.path.endswith("/figures"):
            self.answer(200, json.dumps({"items": self.server.figures, "next_cursor": None}).encode())
        elif "/figures/" in self.path:
            self.answer(200, DATA, {"ETag": ETAG})
        elif self.path.endswith("/checkpoint"):
            start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
            cut_at = self.server.cut_at.pop(0) if self.server.cut_at else None
            self.answer(206 if start else 200, DATA[start:], {"ETag": ETAG}, cut_at)
        elif self.path.startswith("/v1/models"):
            last = "cursor" in self.path
            page = {"items": [{"id": "b" if last else "a"}], "next_cursor": None if last else "more"}
            self.answer(200, json.dumps(page).encode())
        elif self.path.startswith("/v1/jobs/"):
            self.answer(200, json.dumps({"state": next(self.server.states)}).encode())
        else:
            self.answer(502, b"<html>a proxy's page</html>")

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        problem = {"code": "invalid_request", "detail": "architecture.name is unknown", "status": 422}
        self.answer(422, json.dumps(problem).encode(), {"Content-Type": "application/problem+json"})

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(200, json.dumps({"sha256": hashlib.sha256(body).hexdigest()}).encode())


@pytest.fixture
def service():
    with FakeService() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def client(service):
    with Client(service.url) as client:
        yield client


def test_a_problem_becomes_an_error_with_its_code(client):
    with pytest.raises(ApiError) as caught:
        client.create_model({})
    assert (caught.value.code, caught.value.status) == ("invalid_request", 422)
    assert caught.value.detail == "architecture.name is unknown"


def test_an_answer_that_is_no_problem_is_an_error_too(client):
    with pytest.raises(ApiError, match="http_error"):
        client._json("GET", "/elsewhere")


def test_a_service_that_is_not_there_is_an_error_and_not_ready():
    with Client("http://127.0.0.1:9") as client:
        assert not client.is_ready()
        with pytest.raises(ApiError, match="connection_failed"):
            client.job("job_1")


def test_an_upload_sends_the_file_as_it_is(client, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(DATA)
    assert client.upload_model("mdl_1", path)["sha256"] == SHA256


def test_a_download_is_whole_and_leaves_nothing_else(client, tmp_path):
    assert client.download("job_1", tmp_path / "out") == SHA256
    assert (tmp_path / "out").read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_broken_download_is_taken_up_where_it_broke(client, service, tmp_path):
    service.cut_at = [300_000, 200_000]
    client.download("job_1", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == DATA
    ranges = [(given, condition) for path, given, condition in service.requests if path.endswith("checkpoint")]
    assert ranges[0] == (None, None)
    assert ranges[1:] == [("bytes=300000-", ETAG), ("bytes=500000-", ETAG)]


def test_a_download_that_keeps_breaking_is_given_up(client, service, tmp_path):
    service.cut_at = [10] * 10
    with pytest.raises(ApiError, match="connection_failed"):
        client.download("job_1", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_download_with_another_digest_is_not_kept(client, service, tmp_path):
    service.digest = "0" * 64
    with pytest.raises(ApiError, match="digest_mismatch"):
        client.download("job_1", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_figures_become_files_of_their_names(client, tmp_path):
    folder = tmp_path / "new" / "figures"
    assert client.download_figures("job_1", folder) == (folder / "curve.png", folder / "bias.png")
    assert sorted(path.name for path in folder.iterdir()) == ["bias.png", "curve.png"]
    assert (folder / "curve.png").read_bytes() == DATA


@pytest.mark.parametrize("name", ["../../.profile", "/etc/passwd", "a/b", "", "a\x00"])
def test_a_service_cannot_choose_where_a_figure_is_written(client, service, tmp_path, name):
    service.figures[0]["name"] = name
    with pytest.raises(ApiError, match="unsafe_name"):
        client.download_figures("job_1", tmp_path / "figures")
    assert list((tmp_path / "figures").iterdir()) == []


def test_a_figure_with_another_digest_is_not_kept(client, service, tmp_path):
    service.figures[0]["sha256"] = "0" * 64
    with pytest.raises(ApiError, match="digest_mismatch"):
        client.download_figures("job_1", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_waiting_ends_when_the_job_has_ended_however(client, service):
    service.states = iter(["queued", "running", "failed"])
    seen = []
    job = client.wait("job_1", on_progress=lambda job: seen.append(job["state"]))
    assert job["state"] == "failed"
    assert seen == ["queued", "running", "failed"]


def test_waiting_has_a_limit(client, service):
    service.states = iter(["running"] * 100)
    with pytest.raises(ApiError, match="timeout"):
        client.wait("job_1", timeout_seconds=0)


def test_a_list_follows_its_pages(client):
    assert [item["id"] for item in client.list("models")] == ["a", "b"]
