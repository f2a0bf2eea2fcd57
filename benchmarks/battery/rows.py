"""The judgements on disk: one JSON object a line, only ever appended to, so that a broken night loses one job."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE_NAME = "judgements.jsonl"

Row = dict[str, Any]


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Add one row in one write, so that several processes may share the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        # A process that was killed while it wrote leaves half a line; the next row must not be glued to it.
        glued = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, (("\n" if glued else "") + line(row)).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def line(row: Mapping[str, Any]) -> str:
    """Return a row as it stands in the file."""
    return json.dumps(row, sort_keys=True, allow_nan=False) + "\n"


def read(path: Path) -> list[Row]:
    """Return every whole row, oldest first; half a line, left by a process that was killed, is passed over."""
    if not path.exists():
        return []
    rows = []
    for text in path.read_text().splitlines():
        try:
            row = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def finished(rows: list[Row]) -> dict[str, Row]:
    """Return the newest row of each job that was judged; a job that failed is not finished."""
    return {row["id"]: row for row in rows if row["error"] is None}
