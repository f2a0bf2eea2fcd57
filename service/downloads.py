"""Stream stored bytes as HTTP wants it: length, strong ETag, digest, conditions and one range."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping

from sqlalchemy.orm import Session, sessionmaker
from starlette.responses import Response, StreamingResponse

from service import blobs
from service.errors import RangeNotSatisfiableError

_RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{1,18})?|-(\d{1,18}))")
_EXTENSIONS = {"safetensors": "safetensors", "torch_zip": "pth", "pt2": "pt2", "onnx": "onnx", "hugging_face": "zip"}


def respond(
    sessions: sessionmaker[Session],
    tenant: str,
    *,
    sha256: str,
    size: int,
    filename: str,
    media_type: str = "application/octet-stream",
    inline: bool = False,
    method: str,
    request_headers: Mapping[str, str],
) -> Response:
    """The answer to a GET or HEAD of a stored file: 200, 206 or 304.

    Raises:
        RangeNotSatisfiableError: the range begins behind the end of the file.
    """
    etag = f'"{sha256}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:",
    }
    if _matches(request_headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=headers)
    start, stop, status = 0, size, 200
    span = None
    # A range of another version of the file would be glued to the wrong bytes.
    if method == "GET" and request_headers.get("if-range", etag) == etag:
        span = parse_range(request_headers.get("range"), size)
    if span is not None:
        (start, stop), status = span, 206
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    headers |= {
        "Content-Length": str(stop - start),
        "Content-Disposition": f'{"inline" if inline else "attachment"}; filename="{filename}"',
        "Content-Type": media_type,
        "X-Content-Type-Options": "nosniff",
    }
    if inline:  # whatever a browser takes it for, it runs nothing and loads nothing
        headers["Content-Security-Policy"] = "default-src 'none'; sandbox"
    if method == "HEAD":
        return Response(status_code=status, headers=headers)
    return StreamingResponse(blobs.read(sessions, tenant, sha256, start, stop), status, headers)


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The (start, stop) of a single byte range; None for no range, several, or one that makes no sense (RFC 9110).

    Raises:
        RangeNotSatisfiableError: it lies behind the end of the file.
    """
    match = _RANGE.fullmatch((header or "").strip())
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        start, stop = max(0, size - int(suffix)), size
    else:
        start, stop = int(first), min(int(last) + 1, size) if last is not None else size
        if last is not None and int(last) < start:
            return None
    if start >= size:
        raise RangeNotSatisfiableError(size=size)
    return start, stop


def checkpoint_filename(name: str | None, model_id: str, checkpoint_format: str | None) -> str:
    """A name that is safe in a header and in a folder."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name or "").strip(".-")[:100] or model_id
    return f"{stem}.sanitized.{_EXTENSIONS.get(checkpoint_format or '', 'bin')}"


def _matches(header: str, etag: str) -> bool:
    return header.strip() == "*" or etag in {item.strip().removeprefix("W/") for item in header.split(",")}
