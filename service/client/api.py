"""The HTTP contract, as Python: one method a route, problem+json as exceptions, downloads that prove themselves."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

FINISHED = ("succeeded", "failed", "cancelled")
CHUNK_BYTES = 1024 * 1024
CONNECT_SECONDS = 10.0
READY_SECONDS = 5.0
READ_SECONDS = 600.0  # storing an upload of gigabytes takes a while before the answer comes
DOWNLOAD_ATTEMPTS = 5
POLL_SECONDS = 0.3
MAX_POLL_SECONDS = 5.0
# A name from the network becomes a file's.
FIGURE_NAME = re.compile(r"[a-z0-9_-]{1,64}")
NOT_RUNNING = "; is the service running there? `lustrate up` starts one"

Json = dict[str, Any]


class ApiError(Exception):
    """The service, or the way to it, said no. `code` is stable; `detail` is a sentence for people."""

    def __init__(self, code: str, detail: str, status: int | None = None) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.status = status


class Client:
    """A connection to one service. Use it in a `with` block."""

    def __init__(self, url: str, *, transport: httpx.BaseTransport | None = None) -> None:
        timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
        # A proxy of the environment is not asked for what is on this machine, nor told of it.
        self._http = httpx.Client(base_url=url, timeout=timeout, transport=transport, trust_env=not _is_local(url))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def is_ready(self) -> bool:
        """Whether the service answers and says that it is ready."""
        try:
            return self._http.get("/readyz", timeout=READY_SECONDS).is_success
        except httpx.TransportError:
            return False

    def create_model(self, metadata: Mapping[str, Any]) -> Json:
        """Announce a model: `{name?, architecture, input}`."""
        return self._json("POST", "/v1/models", json=metadata)

    def upload_model(self, model_id: str, path: Path) -> Json:
        """Send a model's checkpoint."""
        return self._upload(f"/v1/models/{model_id}/content", path)

    def create_dataset(self, kind: str, *, name: str | None = None, target_class: int | None = None) -> Json:
        """Announce a data set of kind `clean` or `triggered`."""
        fields = {"kind": kind, "name": name, "target_class": target_class}
        return self._json(
            "POST", "/v1/datasets", json={key: value for key, value in fields.items() if value is not None}
        )

    def upload_dataset(self, dataset_id: str, path: Path) -> Json:
        """Send a data set's file."""
        return self._upload(f"/v1/datasets/{dataset_id}/content", path)

    def submit(
        self,
        model_id: str,
        clean_dataset_id: str,
        *,
        triggered_dataset_id: str | None = None,
        spec: Mapping[str, Any] | None = None,
    ) -> Json:
        """Start a job and return it as queued."""
        body: Json = {"model_id": model_id, "clean_dataset_id": clean_dataset_id, "spec": dict(spec or {})}
        if triggered_dataset_id is not None:
            body["triggered_dataset_id"] = triggered_dataset_id
        return self._json("POST", "/v1/jobs", json=body)

    def preview(self, dataset_id: str, model_id: str) -> Json:
        """Start a look at a clean set with a model, and return its job as queued; its report is the preview."""
        return self._json("POST", f"/v1/datasets/{dataset_id}/preview", json={"model_id": model_id})

    def job(self, job_id: str) -> Json:
        """Return a job as it stands."""
        return self._json("GET", f"/v1/jobs/{job_id}")

    def cancel(self, job_id: str) -> Json:
        """Ask for the end of a job."""
        return self._json("POST", f"/v1/jobs/{job_id}/cancel")

    def report(self, job_id: str) -> Json:
        """Return the report of a job that succeeded."""
        return self._json("GET", f"/v1/jobs/{job_id}/report")

    def figures(self, job_id: str) -> tuple[Json, ...]:
        """Return the names, titles and digests of the report's figures, in its order."""
        return tuple(self._json("GET", f"/v1/jobs/{job_id}/figures")["items"])

    def download_figures(self, job_id: str, folder: Path) -> tuple[Path, ...]:
        """Fetch the report's figures into a folder, which is made if need be, and return their files.

        Raises:
            ApiError: a figure has a name that no file should have, or other bytes than its digest says.
        """
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for figure in self.figures(job_id):
            name = figure["name"]
            if not FIGURE_NAME.fullmatch(name):
                raise ApiError("unsafe_name", f"the service calls a figure {name!r}")
            path = folder / f"{name}.png"
            self._fetch_whole(f"/v1/jobs/{job_id}/figures/{name}", path, figure["size"], figure["sha256"])
            paths.append(path)
        return tuple(paths)

    def list(self, what: str) -> Iterator[Json]:
        """Yield all `models`, `datasets` or `jobs`, page by page."""
        cursor: str | None = None
        while True:
            page = self._json("GET", f"/v1/{what}", params={} if cursor is None else {"cursor": cursor})
            yield from page["items"]
            cursor = page.get("next_cursor")
            if cursor is None:
                return

    def wait(
        self,
        job_id: str,
        *,
        on_progress: Callable[[Json], None] = lambda _: None,
        timeout_seconds: float | None = None,
    ) -> Json:
        """Poll until the job has ended, and return it, however it ended.

        Args:
            job_id: the job.
            on_progress: called with the job after each poll.
            timeout_seconds: after which ApiError `timeout` is raised; the job itself goes on.
        """
        began, pause = time.monotonic(), POLL_SECONDS
        while True:
            job = self.job(job_id)
            on_progress(job)
            if job["state"] in FINISHED:
                return job
            waited = time.monotonic() - began
            if timeout_seconds is not None and waited > timeout_seconds:
                raise ApiError("timeout", f"the job is {job['state']} after {waited:.0f} seconds")
            time.sleep(pause)
            pause = min(MAX_POLL_SECONDS, max(POLL_SECONDS, waited / 20))  # a short job is watched closely

    def download(self, job_id: str, path: Path) -> str:
        """Fetch the sanitized checkpoint to `path` and return its SHA-256.

        The file appears under its name only when it is whole and its digest is the one in the job's report; a broken
        connection is taken up where it broke.
        """
        expected = next(file for file in self.report(job_id)["files"] if file["role"] == "sanitized_checkpoint")
        sha256: str = expected["sha256"]
        self._fetch_whole(f"/v1/jobs/{job_id}/checkpoint", path, expected["size_bytes"], sha256)
        return sha256

    def _fetch_whole(self, url: str, path: Path, size: int, sha256: str) -> None:
        part = path.with_name(path.name + ".part")
        try:
            with part.open("wb") as file:
                self._fetch(url, file, size)
            with part.open("rb") as received:
                found = hashlib.file_digest(received, "sha256").hexdigest()
            if found != sha256:
                raise ApiError("digest_mismatch", f"{path.name}: received {found}, expected {sha256}")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def _fetch(self, url: str, file: Any, size: int) -> None:  # noqa: ANN401 - a binary file
        etag: str | None = None
        for attempt in range(1, DOWNLOAD_ATTEMPTS + 1):
            position = file.tell()
            headers = {"Accept-Encoding": "identity"}
            if position and etag is not None:
                headers |= {"Range": f"bytes={position}-", "If-Range": etag}
            try:
                with self._http.stream("GET", url, headers=headers) as response:
                    _raise_for_problem(response)
                    etag = response.headers.get("etag")
                    if response.status_code != httpx.codes.PARTIAL_CONTENT:
                        file.seek(0)
                        file.truncate()
                    for chunk in response.iter_raw():  # as it comes: a larger buffer is lost when the line breaks
                        file.write(chunk)
            except httpx.TransportError as error:
                if attempt == DOWNLOAD_ATTEMPTS:
                    raise ApiError("connection_failed", f"the download broke {attempt} times: {error}") from error
                continue
            if file.tell() >= size:
                return
        raise ApiError("download_incomplete", f"{file.tell()} of {size} bytes came")

    def _upload(self, url: str, path: Path) -> Json:
        size = path.stat().st_size
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        with path.open("rb") as file:
            chunks = iter(lambda: file.read(CHUNK_BYTES), b"")
            return self._json("PUT", url, content=chunks, headers=headers)

    def _json(self, method: str, url: str, **options: Any) -> Json:  # noqa: ANN401 - httpx's own options
        try:
            response = self._http.request(method, url, **options)
        except httpx.TransportError as error:
            advice = NOT_RUNNING if isinstance(error, httpx.ConnectError) else ""
            raise ApiError("connection_failed", f"{method} {self._http.base_url}{url}: {error}{advice}") from error
        _raise_for_problem(response)
        body: Json = response.json()
        return body


def _raise_for_problem(response: httpx.Response) -> None:
    if response.is_success:
        return
    response.read()
    try:
        problem = response.json()
    except ValueError:
        problem = {}
    if not isinstance(problem, dict):
        problem = {}
    code = problem.get("code") or "http_error"
    detail = problem.get("detail") or problem.get("title") or f"HTTP status {response.status_code}"
    raise ApiError(str(code), str(detail), response.status_code)


def _is_local(url: str) -> bool:
    return httpx.URL(url).host in {"127.0.0.1", "localhost", "::1"}


def default_url() -> str:
    """Return the service's address: LUSTRATE_URL, else this machine's default."""
    return os.environ.get("LUSTRATE_URL") or "http://127.0.0.1:8000"
