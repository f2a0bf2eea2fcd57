"""What only a real server shows: broken connections, early answers, bodies that stream."""

import hashlib
import os
import socket
import threading

import httpx
import pytest
import uvicorn
from structlog.testing import capture_logs

from service import blobs
from service.app import create_app

MIB = 1024 * 1024


class Server:
    """A uvicorn in a thread, on a free port."""

    def __init__(self, app):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        self.app = app
        self.uvicorn = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=5))
        self.thread = threading.Thread(target=self.uvicorn.run, args=([self.listener],))

    def __enter__(self):
        self.thread.start()
        self.http = httpx.Client(base_url=self.url, timeout=30, trust_env=False)
        return self  # the socket listens already: a request waits until the server takes it

    def __exit__(self, *_error):
        self.http.close()
        self.uvicorn.should_exit = True
        self.thread.join(20)
        self.listener.close()
        assert not self.thread.is_alive()


@pytest.fixture
def server(sqlite_settings):
    with Server(create_app(sqlite_settings)) as running:
        running.settings = sqlite_settings
        yield running


@pytest.fixture
def content_path(server):
    body = {
        "architecture": {"name": "small_resnet", "num_classes": 10, "in_channels": 1},
        "input": {"height": 28, "width": 28, "mean": [0.5], "std": [0.5]},
    }
    return server.http.post("/v1/models", json=body).json()["links"]["content"]


def raw_request(server, path, headers, body):
    connection = socket.create_connection(server.address)
    lines = [f"PUT {path} HTTP/1.1", "Host: 127.0.0.1", *headers, "", ""]
    connection.sendall("\r\n".join(lines).encode() + body)
    return connection


def test_a_client_that_goes_away_leaves_nothing_and_may_come_again(server, content_path, safetensors):
    data = safetensors(os.urandom(2 * MIB))
    for headers, body in [
        ([f"Content-Length: {len(data)}"], data[: len(data) // 2]),
        (["Transfer-Encoding: chunked"], b"10\r\n" + data[:16] + b"\r\n"),
    ]:
        with capture_logs() as lines:
            raw_request(server, content_path, headers, body).close()
            while not any(line["event"] == "request.finished" for line in lines):
                server.http.get("/nothing-to-wait-for")  # each answer gives the server a turn
                lines[:] = [line for line in lines if line.get("path") != "/nothing-to-wait-for"]
        assert not any(line["event"] == "request.failed" for line in lines), lines
    assert server.http.get(content_path.removesuffix("/content")).json()["state"] == "awaiting_content"
    assert list(server.settings.staging_dir.iterdir()) == []
    answer = server.http.put(content_path, content=data)
    assert (answer.status_code, answer.json()["sha256"]) == (200, hashlib.sha256(data).hexdigest())


def test_a_declared_length_above_the_limit_is_answered_before_the_body_comes(server, content_path):
    too_long = server.settings.max_model_bytes + 1
    with raw_request(server, content_path, [f"Content-Length: {too_long}"], b"") as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_sends_on_regardless_still_reads_the_refusal(server, content_path):
    answer = server.http.put(content_path, content=(b"x" * MIB for _ in range(30)))
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


def test_a_header_that_is_no_number_is_refused(server, content_path):
    with raw_request(server, content_path, ["Content-Length: ten"], b"") as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")


def test_a_download_whose_bytes_vanish_breaks_off_instead_of_ending(server):
    engine_sessions = server.app.state.resources.sessions
    sha256, size = blobs.write(engine_sessions, "local", [os.urandom(6 * MIB)])
    app = server.app

    @app.get("/download")
    def download():
        from starlette.responses import StreamingResponse  # noqa: PLC0415

        def body():
            reader = blobs.read(engine_sessions, "local", sha256)
            yield next(reader)
            blobs.collect_garbage(engine_sessions, older_than_seconds=-1)
            yield from reader

        return StreamingResponse(body(), headers={"Content-Length": str(size)})

    with pytest.raises(httpx.RemoteProtocolError):
        server.http.get("/download")
