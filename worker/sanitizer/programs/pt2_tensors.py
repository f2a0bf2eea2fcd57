"""The raw tensors of a `.pt2` archive: bytes in a member, beside a JSON that says what they are.

Every other way of keeping a tensor is a pickle, and refused.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.sanitizer.archives import Member
from worker.sanitizer.programs import pt2_document as documents
from worker.sanitizer.programs.pt2_document import Document
from worker.sanitizer.refusals import (
    CorruptProgramError,
    PickledWeightsError,
    ProgramTooLargeError,
    TensorExceedsStorageError,
    UnsupportedDtypeError,
    UnsupportedTensorError,
)
from worker.sanitizer.safetensors_file import refuse_absurd

MAX_TENSORS = 20_000
# torch.export's numbers of dtypes (ScalarType in its schema).
FLOAT32 = 7
DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    FLOAT32: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
STRIDED = 7


@dataclass(frozen=True, slots=True)
class Payload:
    """One named tensor of the archive and the member that holds its bytes."""

    name: str
    member: str
    is_parameter: bool
    tensor: Tensor


def read(
    config_bytes: bytes, what: str, members: Mapping[str, Member], view: mmap.mmap, *, folder: str, prefix: str
) -> dict[str, Payload]:
    """The tensors that a member of JSON, called `what`, describes, as views of the archive.

    Raises:
        CheckpointRefusedError: the codes of this module's imports.
    """
    config = documents.fields(documents.parse(config_bytes, what).get("config"), what)
    if len(config) > MAX_TENSORS:
        raise ProgramTooLargeError(f"the program has {len(config)} tensors; at most {MAX_TENSORS} are read")
    seen: dict[tuple[object, ...], Tensor] = {}
    payloads = {}
    for name, value in config.items():
        payload = documents.fields(value, what)
        path_name = documents.text(payload.get("path_name"), what)
        if payload.get("use_pickle") is not False or not isinstance(payload.get("is_param"), bool):
            raise PickledWeightsError(
                f"{name[:80]!r} is kept as a pickle, as tensor subclasses are; export a model of plain tensors"
            )
        member = f"data/{folder}/{path_name}"
        if not re.fullmatch(re.escape(prefix) + "[0-9]{1,9}", path_name) or member not in members:
            raise CorruptProgramError(f"the bytes of {name[:80]!r} are missing; export the program again")
        layout = _layout(name, documents.fields(payload.get("tensor_meta"), what))
        key = (member, *layout)
        if key not in seen:
            seen[key] = _view(view, members[member], name, *layout)
        payloads[name] = Payload(name, member, payload["is_param"], seen[key])
    return payloads


_Layout = tuple[torch.dtype, tuple[int, ...], tuple[int, ...], int]


def _layout(name: str, meta: Document) -> _Layout:
    number = documents.whole(meta.get("dtype"), "a tensor's dtype")
    if number not in DTYPES:
        raise UnsupportedDtypeError(f"{name[:80]!r} has dtype number {number}; use floating-point weights")
    if meta.get("layout") != STRIDED:
        raise UnsupportedTensorError(f"{name[:80]!r} is not a dense tensor; export a model of plain tensors")
    sizes, strides = (
        tuple(
            documents.whole(value, "a tensor's shape") for value in documents.items(meta.get(key), "a tensor's shape")
        )
        for key in ("sizes", "strides")
    )
    return DTYPES[number], sizes, strides, documents.whole(meta.get("storage_offset"), "a tensor's offset")


def _view(
    archive: mmap.mmap,
    member: Member,
    name: str,
    dtype: torch.dtype,
    sizes: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int,
) -> Tensor:
    if len(sizes) != len(strides) or min((*sizes, *strides, offset), default=0) < 0:
        raise CorruptProgramError(f"the shape of {name[:80]!r} is malformed; export the program again")
    refuse_absurd(name, sizes)
    if 0 in sizes:
        return torch.empty(sizes, dtype=dtype)
    _refuse_overlap(name, sizes, strides)
    num_items = member.stored_bytes // dtype.itemsize
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if member.stored_bytes % dtype.itemsize or last >= num_items:
        raise TensorExceedsStorageError(f"{name[:80]!r} is larger than its bytes; export the program again")
    start, stop = member.data_start, member.data_start + member.stored_bytes
    if start % dtype.itemsize:
        flat = torch.frombuffer(bytearray(archive[start:stop]), dtype=dtype)
    else:
        flat = torch.frombuffer(archive, dtype=dtype, count=num_items, offset=start)
    return flat.as_strided(sizes, strides, offset)


def _refuse_overlap(name: str, sizes: tuple[int, ...], strides: tuple[int, ...]) -> None:
    """Refuse a tensor two of whose elements could be one in memory (a stride of 0 makes terabytes of one number)."""
    extent = 1
    for stride, size in sorted(_dimensions(sizes, strides)):
        if stride < extent:
            raise UnsupportedTensorError(
                f"elements of {name[:80]!r} share memory; store the weight with .contiguous() and export again"
            )
        extent = stride * (size - 1) + extent


def _dimensions(sizes: tuple[int, ...], strides: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    return ((stride, size) for size, stride in zip(sizes, strides, strict=True) if size > 1)
