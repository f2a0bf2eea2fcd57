"""The safetensors format: a capped header that we parse ourselves, and tensors that view the file's bytes.

Format: 8 bytes little-endian header length, a JSON object name -> {dtype, shape, data_offsets}, then the data without
gaps (https://huggingface.co/docs/safetensors). Nothing in it can run code; what can hurt is size.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from worker.sanitizer.refusals import (
    AbsurdShapeError,
    CorruptSafetensorsError,
    HeaderTooLargeError,
    TooManyTensorsError,
    UnsupportedDtypeError,
)

MAX_HEADER_BYTES = 4 * 2**20
MAX_TENSORS = 20_000
MAX_DIMENSIONS = 16
# No dimension, and no product of the non-zero ones in an empty tensor, of a real network is above this.
MAX_EXTENT = 2**40

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_METADATA = "__metadata__"
_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of the header; `start` and `stop` count from the end of the header."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class SafetensorsFile:
    """A file that was read: its header as it stood, and the tensors in the header's order."""

    prelude: bytes
    entries: tuple[Entry, ...]
    tensors: dict[str, Tensor]


def looks_like(first_bytes: bytes) -> bool:
    """Say whether the first nine bytes are a length and an opening brace."""
    return len(first_bytes) > _LENGTH_BYTES and first_bytes[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{"


def read(path: Path, *, start: int = 0, size: int | None = None) -> SafetensorsFile:
    """Read a safetensors file. The tensors are private views of the mapped file, so only pages in use cost memory.

    Args:
        path: Of the file.
        start: Where it begins, inside of an archive that stores it as it is.
        size: Its bytes, None for all to the end.

    Raises:
        UploadRefusedError: corrupt_safetensors, header_too_large, too_many_tensors, unsupported_dtype,
            absurd_tensor_shape.
    """
    with path.open("rb") as file:
        file_bytes = path.stat().st_size - start if size is None else size
        file.seek(start)
        prelude = _read_prelude(file, file_bytes)
        entries = _parse_header(prelude[_LENGTH_BYTES:], file_bytes - len(prelude))
        # A private mapping: torch wants writable memory, and no write may reach the upload.
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    tensors = {entry.name: _view(view, start + len(prelude), entry) for entry in entries}
    return SafetensorsFile(prelude=prelude, entries=tuple(entries), tensors=tensors)


def write(file: BinaryIO, source: SafetensorsFile, tensors: dict[str, Tensor]) -> None:
    """Write `source` again with some tensors replaced: the header, and so order, metadata and offsets, is unchanged."""
    file.writelines(parts(source, tensors))


def parts(source: SafetensorsFile, tensors: dict[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of `source` with some tensors replaced, in the file's order."""
    yield source.prelude
    for entry in sorted(source.entries, key=lambda entry: (entry.start, entry.stop)):
        tensor = tensors.get(entry.name, source.tensors[entry.name])
        yield tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _read_prelude(file: BinaryIO, file_bytes: int) -> bytes:
    length = file.read(min(_LENGTH_BYTES, file_bytes))
    if len(length) < _LENGTH_BYTES:
        raise CorruptSafetensorsError("the safetensors file is cut off; upload the whole file again")
    header_bytes = int.from_bytes(length, "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise HeaderTooLargeError(
            f"the safetensors header declares {header_bytes} bytes; at most {MAX_HEADER_BYTES} are accepted"
        )
    if header_bytes > file_bytes - _LENGTH_BYTES:
        raise CorruptSafetensorsError("the safetensors file is shorter than its header; upload the whole file again")
    return length + file.read(header_bytes)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(pairs) > MAX_TENSORS + 1:
        raise TooManyTensorsError(f"the safetensors header has {len(pairs)} entries; at most {MAX_TENSORS} tensors")
    result = dict(pairs)
    if len(result) != len(pairs):
        raise CorruptSafetensorsError("the safetensors header names a tensor twice; save the file again")
    return result


def _parse_header(header: bytes, data_bytes: int) -> list[Entry]:
    try:
        parsed = json.loads(header.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        # ValueError covers bad UTF-8, bad JSON and integers of thousands of digits.
        raise CorruptSafetensorsError("the safetensors header is not valid JSON; save the file again") from error
    if not isinstance(parsed, dict):
        raise CorruptSafetensorsError("the safetensors header is not a JSON object; save the file again")
    metadata = parsed.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CorruptSafetensorsError("__metadata__ must map names to strings; save the file again")
    entries = [_parse_entry(name, value) for name, value in parsed.items()]
    position = 0
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.stop)):
        if entry.start != position:
            raise CorruptSafetensorsError(f"the data of {entry.name!r} overlap or leave a gap; save the file again")
        position = entry.stop
    if position != data_bytes:
        raise CorruptSafetensorsError(
            f"the safetensors header describes {position} bytes of data, the file holds {data_bytes}; "
            "upload the whole file again"
        )
    return entries


def _parse_entry(name: str, value: object) -> Entry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise CorruptSafetensorsError(f"the header entry of {name[:80]!r} is malformed; save the file again")
    dtype = DTYPES.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    if dtype is None:
        raise UnsupportedDtypeError(
            f"{name[:80]!r} has dtype {str(value['dtype'])[:20]!r}; save it as one of {', '.join(DTYPES)}"
        )
    shape, offsets = value["shape"], value["data_offsets"]
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CorruptSafetensorsError(f"shape or offsets of {name[:80]!r} are malformed; save the file again")
    refuse_absurd(name, shape)
    if math.prod(shape) * dtype.itemsize != offsets[1] - offsets[0]:
        raise CorruptSafetensorsError(f"shape and bytes of {name[:80]!r} do not agree; save the file again")
    return Entry(name=name, dtype=dtype, shape=tuple(shape), start=offsets[0], stop=offsets[1])


def refuse_absurd(name: str, shape: list[int] | tuple[int, ...]) -> None:
    """Refuse a shape that no network has, among them empty tensors with huge dimensions.

    Raises:
        AbsurdShapeError: more than MAX_DIMENSIONS dimensions, or an extent above MAX_EXTENT.
    """
    if len(shape) > MAX_DIMENSIONS or math.prod(max(size, 1) for size in shape) > MAX_EXTENT:
        raise AbsurdShapeError(f"{name[:80]!r} has a shape that no network has; leave the tensor out")


def _counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _view(view: mmap.mmap, data_start: int, entry: Entry) -> Tensor:
    count = math.prod(entry.shape)
    if count == 0:
        return torch.empty(entry.shape, dtype=entry.dtype)
    start = data_start + entry.start
    if start % entry.dtype.itemsize:
        # Some writers do not align; arithmetic on such memory is undefined, so this tensor is copied.
        return torch.frombuffer(bytearray(view[start : data_start + entry.stop]), dtype=entry.dtype).reshape(
            entry.shape
        )
    return torch.frombuffer(view, dtype=entry.dtype, count=count, offset=start).reshape(entry.shape)
