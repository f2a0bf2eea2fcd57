"""Receive a raw body within limits: hash it, look at its first bytes, store it, and record it. No torch."""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import anyio
import structlog
from anyio.to_thread import run_sync
from sqlalchemy.orm import Session, sessionmaker

from service import blobs, resources
from service.errors import (
    BadRequestError,
    BodyTooLargeError,
    InsufficientStorageError,
    UnprocessableError,
    UnsupportedMediaTypeError,
    UploadTimedOutError,
)
from service.resources import Content, Row

# Hash and write this much at a time, in a thread, so that a slow disk does not hold up other requests.
BUFFER_BYTES = 1024 * 1024
# A client that sends nothing for this long is gone.
IDLE_SECONDS = 60.0
# A staging file this old belongs to a process that died; no upload lasts so long.
STALE_STAGING_SECONDS = 12 * 3600.0

_DIGEST = re.compile(r"(?:^|[,\s])sha-256=:([^:]*):", re.IGNORECASE)
_TOO_LARGE = "send a smaller file, or ask the operator to raise LUSTRATE_MAX_MODEL_BYTES or LUSTRATE_MAX_DATASET_BYTES"
_FORM_TYPES = {"multipart/form-data", "application/x-www-form-urlencoded"}

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What the headers promise about the body."""

    size: int | None
    sha256: str | None


async def receive(
    sessions: sessionmaker[Session],
    row: type[Row],
    tenant: str,
    resource_id: str,
    *,
    headers: Mapping[str, str],
    stream: AsyncIterator[bytes],
    look: Callable[[Path], str],
    staging_dir: Path,
    max_bytes: int,
) -> Row:
    """Receive the content of a model or data set, and make it ready.

    Raises:
        ServiceError: 400, 404, 408, 409, 413, 415, 422 or 507; nothing is recorded then, and the upload may be retried.
    """
    resource = await run_sync(resources.get, sessions, row, tenant, resource_id)
    declared = check_headers(headers, max_bytes=max_bytes)
    if declared.size is not None:
        resources.check_same_content(resource, size=declared.size)
    staging_dir.mkdir(parents=True, exist_ok=True)
    path = staging_dir / f"{uuid.uuid4().hex}.part"
    try:
        sha256, size = await _stage(stream, path, declared, max_bytes)
        _check_whole(declared, sha256, size)
        resources.check_same_content(resource, sha256=sha256, size=size)
        content = Content(sha256=sha256, size=size, format=await run_sync(look, path))
        await run_sync(lambda: blobs.write(sessions, tenant, _pieces(path), sha256=sha256))
        recorded = await run_sync(resources.record_content, sessions, row, tenant, resource_id, content)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise InsufficientStorageError("the disk for uploads is full; try again later") from error
        raise
    finally:
        path.unlink(missing_ok=True)
    log.info("upload.recorded", resource=resource_id, size=size, sha256=sha256, format=content.format)
    return recorded


def check_headers(headers: Mapping[str, str], *, max_bytes: int) -> Declared:
    """Refuse what the headers alone give away, before a byte of the body is read.

    Raises:
        UnsupportedMediaTypeError: use_raw_body, unsupported_content_encoding.
        BadRequestError: invalid_content_length, content_range_not_supported, invalid_digest.
        BodyTooLargeError: Content-Length is above the limit.
    """
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type in _FORM_TYPES:
        raise UnsupportedMediaTypeError(
            f"send the file itself as the body, not as {media_type}: curl -T FILE URL", code="use_raw_body"
        )
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaTypeError(
            "send the file as it is, without a Content-Encoding", code="unsupported_content_encoding"
        )
    if "content-range" in headers:
        raise BadRequestError("send the whole file in one request", code="content_range_not_supported")
    length = headers.get("content-length")
    if length is not None and not (length.isascii() and length.isdigit()):
        raise BadRequestError("Content-Length must be a number", code="invalid_content_length")
    size = int(length) if length is not None else None
    if size is not None and size > max_bytes:
        raise BodyTooLargeError(_TOO_LARGE, max_bytes=max_bytes)
    return Declared(size=size, sha256=_declared_sha256(headers))


def clean_staging(staging_dir: Path, *, older_than_seconds: float = STALE_STAGING_SECONDS) -> int:
    """Remove what processes that died have left, and return how many files went."""
    removed = 0
    for path in staging_dir.glob("*.part"):
        try:
            if time.time() - path.stat().st_mtime > older_than_seconds:
                path.unlink()
                removed += 1
        except FileNotFoundError:  # another process was faster
            continue
    return removed


async def _stage(stream: AsyncIterator[bytes], path: Path, declared: Declared, max_bytes: int) -> tuple[str, int]:
    """Write the body to a file while hashing it."""
    digest, size, buffer = hashlib.sha256(), 0, bytearray()

    def flush(file: BinaryIO) -> None:
        digest.update(buffer)
        file.write(buffer)
        buffer.clear()

    with path.open("xb") as file:
        while True:
            try:
                with anyio.fail_after(IDLE_SECONDS):
                    chunk = await anext(stream, None)
            except TimeoutError:
                raise UploadTimedOutError(f"no data came for {IDLE_SECONDS:.0f} seconds; send it again") from None
            if chunk is None:
                break
            size += len(chunk)
            if size > max_bytes:
                raise BodyTooLargeError(_TOO_LARGE, max_bytes=max_bytes)
            if declared.size is not None and size > declared.size:
                raise _length_mismatch(declared.size, f"at least {size}")
            buffer += chunk
            if len(buffer) >= BUFFER_BYTES:
                await run_sync(flush, file)
        await run_sync(flush, file)
    return digest.hexdigest(), size


def _check_whole(declared: Declared, sha256: str, size: int) -> None:
    if declared.size is not None and size != declared.size:
        raise _length_mismatch(declared.size, str(size))
    if size == 0:
        raise UnprocessableError("the body is empty: curl -T FILE URL sends a file", code="empty_body")
    if declared.sha256 is not None and declared.sha256 != sha256:
        raise UnprocessableError(
            f"the body's SHA-256 is {sha256}, and the digest header says {declared.sha256}: "
            "it was changed on its way; send it again",
            code="digest_mismatch",
        )


def _length_mismatch(declared: int, received: str) -> BadRequestError:
    return BadRequestError(
        f"the body has {received} bytes, and Content-Length says {declared}; send it again", code="body_length_mismatch"
    )


def _declared_sha256(headers: Mapping[str, str]) -> str | None:
    """The SHA-256 of Content-Digest or Repr-Digest (RFC 9530); without a content coding they are the same."""
    found: set[str] = set()
    for name in ("content-digest", "repr-digest"):
        for encoded in _DIGEST.findall(headers.get(name, "")):
            try:
                digest = base64.b64decode(encoded, validate=True)
            except binascii.Error:
                digest = b""
            if len(digest) != 32:
                raise BadRequestError(f"{name} must be sha-256=:BASE64 OF 32 BYTES:", code="invalid_digest")
            found.add(digest.hex())
    if len(found) > 1:
        raise BadRequestError("Content-Digest and Repr-Digest differ", code="invalid_digest")
    return found.pop() if found else None


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(blobs.CHUNK_BYTES):
            yield piece
