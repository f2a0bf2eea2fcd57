import asyncio
import base64
import hashlib
import os
import time

import httpx
import pytest

from service import blobs, uploads

MIB = 1024 * 1024


def digest(data):
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


def staged(api):
    return list(api.settings.staging_dir.iterdir())


@pytest.fixture
def put(api):
    model = api.model()

    def _put(content, **headers):
        return api.http.put(model["links"]["content"], content=content, headers=headers)

    _put.model = model
    return _put


def test_content_once_is_content_for_good(api, put, refused, safetensors):
    data = safetensors(b"first")
    first = put(data)
    assert put(data).json() == first.json(), "the same bytes again change nothing"
    refused(put(safetensors(b"other")), 409, "content_already_uploaded")
    refused(put(safetensors(b"longer than it was")), 409, "content_already_uploaded")
    assert staged(api) == []


def test_an_empty_body_is_refused_and_can_be_retried(api, put, refused, safetensors):
    refused(put(b""), 422, "empty_body")
    assert put(safetensors()).status_code == 200
    assert staged(api) == []


def test_a_declared_length_above_the_limit_is_refused(api, put, refused):
    def body():
        yield b"x"

    answer = put(body(), **{"Content-Length": str(api.settings.max_model_bytes + 1)})
    document = refused(answer, 413, "body_too_large")
    assert document["max_bytes"] == api.settings.max_model_bytes
    assert "LUSTRATE_MAX_MODEL_BYTES" in document["detail"]
    assert staged(api) == []


def test_a_chunked_body_is_counted(api, put, refused):
    answer = put(b"x" * MIB for _ in range(api.settings.max_model_bytes // MIB + 1))
    refused(answer, 413, "body_too_large")
    assert staged(api) == []


@pytest.mark.parametrize("declared", [3, 10**6])
def test_a_body_of_another_length_than_declared_is_refused(api, put, refused, safetensors, declared):
    data = safetensors(b"x" * 100)
    refused(put(iter([data]), **{"Content-Length": str(declared)}), 400, "body_length_mismatch")
    assert put(data).status_code == 200, "nothing was recorded, so it can be retried"
    assert staged(api) == []


@pytest.mark.parametrize("header", ["Content-Digest", "Repr-Digest"])
def test_a_digest_is_verified(put, refused, safetensors, header):
    data = safetensors()
    refused(put(data, **{header: digest(b"other")}), 422, "digest_mismatch")
    refused(put(data, **{header: "sha-256=:AAAA:"}), 400, "invalid_digest")
    assert put(data, **{header: f"md5=:AAAA:, {digest(data)}"}).status_code == 200


def test_a_form_is_told_how_to_send_a_file(api, put, refused):
    answer = api.http.put(put.model["links"]["content"], files={"file": b"x"})
    assert "curl -T" in refused(answer, 415, "use_raw_body")["detail"]
    refused(put(b"x", **{"Content-Type": "application/x-www-form-urlencoded"}), 415, "use_raw_body")


def test_encodings_and_pieces_are_refused(put, refused):
    refused(put(b"x", **{"Content-Encoding": "gzip"}), 415, "unsupported_content_encoding")
    refused(put(b"x", **{"Content-Range": "bytes 0-0/2"}), 400, "content_range_not_supported")


def test_a_format_that_is_not_taken_records_nothing(api, put, refused, safetensors):
    refused(put(b"\x80\x04pickle"), 422, "unsupported_checkpoint_format")
    assert api.http.get(put.model["links"]["self"]).json()["state"] == "awaiting_content"
    assert put(safetensors()).status_code == 200
    assert staged(api) == []


def test_a_full_disk_is_said_to_be_one(put, refused, monkeypatch, safetensors):
    async def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(uploads, "_stage", full)
    refused(put(safetensors()), 507, "insufficient_storage")


def test_a_client_that_stops_sending_is_given_up(api, monkeypatch, refused):
    monkeypatch.setattr(uploads, "IDLE_SECONDS", 0.01)
    model = api.model()

    async def stalls():
        yield b"x"
        await asyncio.Event().wait()

    async def put():
        transport = httpx.ASGITransport(app=api.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.put(model["links"]["content"], content=stalls())

    refused(asyncio.run(put()), 408, "upload_timed_out")
    assert staged(api) == []


def test_what_a_dead_process_left_is_cleaned(api):
    old, fresh, foreign = (api.settings.staging_dir / name for name in ("old.part", "fresh.part", "other.txt"))
    for path in (old, fresh, foreign):
        path.write_bytes(b"x")
    long_ago = time.time() - uploads.STALE_STAGING_SECONDS - 1
    for path in (old, foreign):
        os.utime(path, (long_ago, long_ago))
    assert uploads.clean_staging(api.settings.staging_dir) == 1
    assert {path.name for path in staged(api)} == {"fresh.part", "other.txt"}


def test_a_body_of_several_rows_is_recorded_whole(any_api, safetensors):
    data = safetensors(os.urandom(9 * MIB))
    model = any_api.model(data)
    assert (model["size"], model["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert b"".join(blobs.read(any_api.sessions, "local", model["sha256"])) == data
