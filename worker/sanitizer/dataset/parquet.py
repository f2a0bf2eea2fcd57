"""Parquet as Hugging Face's `datasets` writes image sets: a struct `bytes, path` and an integer label for each row.

One file, or a zip of the shards of one split. Only these two columns are read, a few rows at a time.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch import Tensor

from worker.sanitizer.archives import MAX_MEMBERS, Member
from worker.sanitizer.dataset import folders, parquet_pages, pictures
from worker.sanitizer.dataset.stacking import Stack
from worker.sanitizer.refusals import (
    CorruptDatasetError,
    DatasetTooLargeError,
    LabelArrayError,
    NoImagesError,
    ParquetLayoutError,
    ParquetNotInstalledError,
    SeveralSplitsError,
)
from worker.sanitizer.spec import MAX_CLASSES, MAX_NAME

if TYPE_CHECKING:
    import pyarrow.parquet

SUFFIX = ".parquet"
MAX_ROWS = MAX_MEMBERS
MAX_COLUMNS = 64
MAX_ROW_GROUPS = 20_000
MAX_SCHEMA_DEPTH = 8
MAX_BYTES = 2 * 2**30
# A dictionary gives one large value to many rows, so this many bytes are what a batch may at most become.
BATCH_BYTES = 128 * 2**20
MAX_BATCH_ROWS = 64

_LABEL_COLUMNS = ("label", "labels")

Columns = tuple[str, str | None, tuple[str, ...] | None]


def read(path: Path, stack: Stack, *, alpha: bool) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """Put the images of one file into the stack; return labels and class names, where it has them.

    Raises:
        DatasetRefusedError: wrong_parquet_layout, parquet_not_installed, wrong_label_array, empty_dataset,
            dataset_too_large, corrupt_dataset, and what decoding and stacking refuse.
    """
    with path.open("rb") as file:
        return _combine([_read(file, path.stat().st_size, path.name, stack, alpha=alpha)])


def read_shards(
    path: Path, members: list[Member], stack: Stack, *, alpha: bool
) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """The same for a zip that holds the shards of one split, in the order of their names. Raises as `read` does."""
    shards = sorted((m for m in members if not m.is_directory and m.name.endswith(SUFFIX)), key=lambda m: m.name)
    splits = {re.split(r"[-.]", member.name.rsplit("/", 1)[-1])[0].lower() for member in shards}
    if len(splits) > 1 and splits <= folders.SPLITS:
        raise SeveralSplitsError(
            f"the zip holds the splits {', '.join(sorted(splits))}; keep the one whose images the model was not "
            "trained on"
        )
    found = []
    with folders.open_zip(path) as archive:
        for member in shards:
            # Parquet is read from its end, which a packed member does not allow.
            with tempfile.TemporaryFile() as file:
                file.writelines(folders.unpack(archive, member))
                found.append(_read(file, member.unpacked_bytes, member.name, stack, alpha=alpha))
    return _combine(found)


def _combine(
    shards: list[tuple[list[int] | None, tuple[str, ...] | None]],
) -> tuple[Tensor | None, tuple[str, ...] | None]:
    names = {shard_names for _, shard_names in shards}
    if len(names) > 1 or len({labels is None for labels, _ in shards}) > 1:
        raise ParquetLayoutError("the shards differ in their labels or class names; zip the shards of one data set")
    if shards[0][0] is None:
        return None, None
    together = [label for labels, _ in shards for label in labels or ()]
    return torch.tensor(together, dtype=torch.int64), names.pop()


def _read(
    file: BinaryIO, file_bytes: int, name: str, stack: Stack, *, alpha: bool
) -> tuple[list[int] | None, tuple[str, ...] | None]:
    try:
        import pyarrow as pa  # noqa: PLC0415 - optional, and only for those who send Parquet
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError as error:
        raise ParquetNotInstalledError(
            "this worker cannot read Parquet; send a zip of class folders, or ask its operator for lustrate[parquet]"
        ) from error
    parquet_pages.check_ends(file, file_bytes)
    try:
        with pq.ParquetFile(
            file,
            pre_buffer=False,
            arrow_extensions_enabled=False,  # no type but Arrow's own
            schema_depth_limit=MAX_SCHEMA_DEPTH,
            thrift_string_size_limit=parquet_pages.MAX_FOOTER_BYTES,
            thrift_container_size_limit=MAX_ROW_GROUPS,
        ) as parquet:
            columns = _columns(parquet, name)
            largest = _check_sizes(file, file_bytes, parquet, columns)
            labels: list[int] = []
            for number, (data, label) in enumerate(_rows(parquet, columns, largest)):
                row_name = f"{name} row {number}"
                if not isinstance(data, bytes):
                    raise ParquetLayoutError(
                        f"{row_name!r} has no image bytes, only a path; embed the images before writing the file "
                        "(datasets: cast_column with Image, then embed_table_storage)"
                    )
                stack.add(pictures.decode(data, row_name, alpha=alpha), row_name)
                if columns[1] is not None:
                    labels.append(_label(label, row_name))
    except MemoryError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise CorruptDatasetError(f"{name!r} cannot be read as Parquet; write the file again") from error
    if columns[1] is None:
        return None, None
    return labels, columns[2]


def _label(value: object, row_name: str) -> int:
    if not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise LabelArrayError(f"{row_name!r} has no label; give every row an integer class")
    return value


def _columns(parquet: pyarrow.parquet.ParquetFile, name: str) -> Columns:
    """Find the image column, the label column and the class names; refuse everything that makes it a guess."""
    import pyarrow as pa  # noqa: PLC0415

    schema = parquet.schema_arrow
    if len(schema) > MAX_COLUMNS:
        raise ParquetLayoutError(f"{name!r} has {len(schema)} columns; keep the image and its label")
    images = []
    for field in schema:
        if pa.types.is_struct(field.type):
            kinds = {child.name: child.type for child in field.type}
            if kinds.keys() == {"bytes", "path"} and kinds["bytes"] in (pa.binary(), pa.large_binary()):
                images.append(field.name)
        elif pa.types.is_nested(field.type):
            raise ParquetLayoutError(f"column {field.name[:40]!r} is a list or map; keep the image and its label")
    if len(images) != 1:
        raise ParquetLayoutError(
            f"{name!r} has {len(images)} image columns (a struct of bytes and path, as Hugging Face datasets writes "
            "it), and must have one"
        )
    features = _features(schema.metadata or {})
    declared = [key for key, noted in features.items() if noted.get("_type") == "ClassLabel" and key in schema.names]
    candidates = [field for field in _LABEL_COLUMNS if field in schema.names] or declared
    if len(candidates) > 1:
        raise ParquetLayoutError(f"{name!r} has several labels ({', '.join(candidates)[:80]}); keep one as `label`")
    label = candidates[0] if candidates else None
    if label is not None and (schema.names.count(label) != 1 or not pa.types.is_integer(schema.field(label).type)):
        raise LabelArrayError(f"column {label[:40]!r} of {name!r} must hold one integer class for each row")
    return images[0], label, _class_names(features.get(label or "", {}))


def _features(metadata: dict[bytes, bytes]) -> dict[str, dict[str, Any]]:
    """The features that Hugging Face's library notes in the schema; none where there is no such note."""
    try:
        noted = json.loads(metadata.get(b"huggingface", b"{}"))
        features = noted["info"]["features"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return {}
    if not isinstance(features, dict):
        return {}
    return {key: value for key, value in features.items() if isinstance(value, dict)}


def _class_names(feature: dict[str, Any]) -> tuple[str, ...] | None:
    names = feature.get("names")
    if feature.get("_type") != "ClassLabel" or not isinstance(names, list):
        return None
    if len(names) > MAX_CLASSES or not all(
        isinstance(name, str) and len(name) <= MAX_NAME and name.isprintable() for name in names
    ):
        raise ParquetLayoutError(
            f"class names must be printable texts of at most {MAX_NAME} characters; correct the features"
        )
    return tuple(names)


def _check_sizes(file: BinaryIO, file_bytes: int, parquet: pyarrow.parquet.ParquetFile, columns: Columns) -> int:
    """Refuse more rows or bytes than a limit allows, by the pages themselves. Returns the largest page's bytes."""
    metadata = parquet.metadata
    if metadata.num_rows <= 0:
        raise NoImagesError("the Parquet file has no rows; upload at least five images per class")
    if metadata.num_rows > MAX_ROWS or metadata.num_row_groups > MAX_ROW_GROUPS:
        raise DatasetTooLargeError(f"the Parquet file has {metadata.num_rows} rows; at most {MAX_ROWS} are accepted")
    wanted = {f"{columns[0]}.bytes", f"{columns[0]}.path", columns[1]}
    largest = total = 0
    for chunk in parquet_pages.chunks(file, file_bytes):
        if chunk.path in wanted:
            page, pages = parquet_pages.measure(file, chunk.start, chunk.num_bytes)
            largest, total = max(largest, page), total + pages
    if total > MAX_BYTES:
        raise DatasetTooLargeError(f"the Parquet file unpacks to {total} bytes; at most {MAX_BYTES} are accepted")
    return largest


def _rows(parquet: pyarrow.parquet.ParquetFile, columns: Columns, largest_page: int) -> Iterator[tuple[object, object]]:
    image, label, _ = columns
    batch_rows = max(1, min(MAX_BATCH_ROWS, BATCH_BYTES // max(1, largest_page)))
    names = [f"{image}.bytes"] + ([label] if label is not None else [])
    num_rows = 0
    for batch in parquet.iter_batches(batch_size=batch_rows, columns=names, use_threads=False):
        num_rows += batch.num_rows
        if num_rows > MAX_ROWS:
            raise DatasetTooLargeError(f"the Parquet file has more than {MAX_ROWS} rows; upload fewer images")
        images = batch.column(image).field("bytes")
        labels = [None] * batch.num_rows if label is None else batch.column(label).to_pylist()
        for row, value in enumerate(labels):
            yield images[row].as_py(), value
