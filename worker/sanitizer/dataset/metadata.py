"""The `metadata.csv` or `metadata.jsonl` of a Hugging Face imagefolder: a class for each file, where it says one."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator

from worker.sanitizer.archives import MAX_MEMBERS
from worker.sanitizer.refusals import CorruptDatasetError, DatasetTooLargeError
from worker.sanitizer.spec import MAX_NAME

FILES = ("metadata.csv", "metadata.jsonl")
MAX_BYTES = 32 * 2**20


def read_labels(data: bytes, name: str) -> dict[str, str] | None:
    """Return the class of each `file_name`, or None where the file has no column `label`.

    Raises:
        DatasetRefusedError: corrupt_dataset, dataset_too_large.
    """
    rows = _csv_rows if name.endswith(".csv") else _json_rows
    labels: dict[str, str] = {}
    try:
        for row in rows(data.decode("utf-8-sig")):
            if "label" not in row:
                return None
            label = row["label"]
            if not isinstance(label, str | int) or isinstance(label, bool) or not isinstance(row.get("file_name"), str):
                raise CorruptDatasetError(f"{name!r}: each row needs a file_name and a label, a number or a name")
            if len(str(label)) > MAX_NAME or not str(label).isprintable():
                raise CorruptDatasetError(f"{name!r}: a label is no printable text of at most {MAX_NAME} characters")
            labels[str(row["file_name"])] = str(label)
            if len(labels) > MAX_MEMBERS:
                raise DatasetTooLargeError(f"{name!r} has more than {MAX_MEMBERS} rows; upload fewer images")
    except (csv.Error, ValueError, RecursionError) as error:
        raise CorruptDatasetError(
            f"{name!r} cannot be read; write it as UTF-8 with a header, or one JSON a line"
        ) from (error)
    return labels


def _csv_rows(text: str) -> Iterator[dict[str, object]]:
    yield from csv.DictReader(io.StringIO(text, newline=""), restkey="")


def _json_rows(text: str) -> Iterator[dict[str, object]]:
    for line in text.splitlines():
        if line.strip():
            row = json.loads(line)
            yield row if isinstance(row, dict) else {}
