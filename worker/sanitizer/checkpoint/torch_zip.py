"""The zip format of torch.save: checked before torch opens it, loaded with weights_only, written by torch.save."""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from worker.sanitizer import archives
from worker.sanitizer.archives import Member
from worker.sanitizer.checkpoint import numpy_values, opcodes, tree
from worker.sanitizer.refusals import (
    CheckpointTooComplexError,
    CorruptCheckpointError,
    DeflatedMemberError,
    TiedTensorsDisagreeError,
    TorchScriptError,
    UnknownMemberError,
    UnsupportedByteOrderError,
)

MAX_STORAGES = 20_000

_KNOWN = re.compile(
    r"(data\.pkl|data/[0-9]{1,9}|byteorder|version|\.format_version|\.storage_alignment|\.data/serialization_id)"
)
_SMALL_MEMBER_BYTES = 4096
# Everything that torch.load and the C++ reader below it are known to raise on a file they do not like.
_LOADER_ERRORS = (
    RuntimeError,
    pickle.UnpicklingError,
    EOFError,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    AssertionError,
    OverflowError,
    RecursionError,
    MemoryError,
    struct.error,
)


@dataclass(frozen=True, slots=True)
class TorchZip:
    """The object tree of a checkpoint that passed every check."""

    root: object


def read(path: Path) -> TorchZip:
    """Read a torch zip. Tensors are private views of the mapped file: only pages in use cost memory.

    Raises:
        CheckpointRefusedError: see the codes of this module's imports.
    """
    with path.open("rb") as file:
        file_bytes = path.stat().st_size
        members = _known_members(archives.read_directory(file, file_bytes, max_members=MAX_STORAGES + 16))
        _check_byte_order(file, members)
        summary = opcodes.summarize(_read_pickle(file, members))
    for key, declared in summary.storage_bytes.items():
        member = members.get(f"data/{key}")
        if member is None or member.unpacked_bytes != declared:
            raise CorruptCheckpointError(
                f"storage {key[:20]!r} is missing or not of the size that the checkpoint declares; save it again"
            )
    try:
        with torch.serialization.safe_globals(numpy_values.STAND_INS):
            root = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except _LOADER_ERRORS as error:
        raise CorruptCheckpointError(
            "torch cannot load the checkpoint; save it again with torch.save(model.state_dict(), path)"
        ) from error
    tree.check(root)
    return TorchZip(root=root)


def write(file: BinaryIO, source: TorchZip, replacements: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Write the tree of `source` again by torch.save; each pair is a tensor of the tree and its new value.

    Tensors that share a storage still share one. Storages without a changed tensor are written from the upload.

    Raises:
        TiedTensorsDisagreeError: two tensors on the same memory were given different values.
    """
    storages: dict[int, torch.UntypedStorage] = {}
    for tensor, value in replacements:
        if same_bytes(tensor, value):
            continue
        storage = tensor.untyped_storage()
        if storage._cdata not in storages:  # noqa: SLF001 - a storage has no other identity
            storages[storage._cdata] = storage.clone()  # type: ignore[no-untyped-call]  # noqa: SLF001
        _on(tensor, storages).copy_(value)
    for tensor, value in replacements:
        if tensor.untyped_storage()._cdata in storages and not same_bytes(_on(tensor, storages), value):  # noqa: SLF001
            raise TiedTensorsDisagreeError("two names of the checkpoint share memory but were given different values")

    def replace(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in storages:  # noqa: SLF001
            return tensor
        moved = _on(tensor, storages)
        if isinstance(tensor, torch.nn.Parameter):
            return torch.nn.Parameter(moved, requires_grad=tensor.requires_grad)
        return moved.requires_grad_(tensor.requires_grad)

    torch.save(tree.rebuild(source.root, replace), file)


def same_bytes(left: Tensor, right: Tensor) -> bool:
    """Say whether two tensors of one shape and dtype have the same bits, NaN and signed zeros included."""
    return torch.equal(
        left.detach().contiguous().reshape(-1).view(torch.uint8),
        right.detach().contiguous().reshape(-1).view(torch.uint8),
    )


def _on(tensor: Tensor, storages: dict[int, torch.UntypedStorage]) -> Tensor:
    """Return the same view on the storage that replaces the tensor's own."""
    storage = storages[tensor.untyped_storage()._cdata]  # noqa: SLF001
    view = torch.empty(0, dtype=tensor.dtype)
    return view.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())


def _known_members(members: list[Member]) -> dict[str, Member]:
    """Return the members by their names below the one top folder."""
    roots = {member.name.split("/", 1)[0] for member in members}
    by_name = {member.name.split("/", 1)[-1]: member for member in members}
    if any(name == "constants.pkl" or name.startswith("code/") for name in by_name):
        raise TorchScriptError(
            "this is a TorchScript program, which can run code and touch files; load it where you trust it and save "
            "its weights: torch.save(torch.jit.load(path).state_dict(), new_path), or as safetensors "
            "(docs/torchscript.md)"
        )
    unknown = [name for name in by_name if not _KNOWN.fullmatch(name)]
    if len(roots) != 1 or unknown or "data.pkl" not in by_name:
        raise UnknownMemberError(
            f"the zip file is not a checkpoint that torch.save wrote (unexpected: {', '.join(unknown[:3]) or 'layout'}"
            "); save it with torch.save(model.state_dict(), path), or as safetensors"
        )
    for member in members:
        if member.method != archives.STORED:
            raise DeflatedMemberError(
                f"{member.name!r} is compressed, which torch.save never does; save the checkpoint again"
            )
        if not member.name.endswith("data.pkl") and "/data/" not in member.name:
            _refuse_large(member, _SMALL_MEMBER_BYTES)
    _refuse_large(by_name["data.pkl"], opcodes.MAX_PICKLE_BYTES)
    return by_name


def _refuse_large(member: Member, max_bytes: int) -> None:
    if member.unpacked_bytes > max_bytes:
        raise CheckpointTooComplexError(
            f"{member.name!r} has {member.unpacked_bytes} bytes, at most {max_bytes} are accepted; "
            "save the state dict alone"
        )


def _check_byte_order(file: BinaryIO, members: dict[str, Member]) -> None:
    member = members.get("byteorder")
    if member is None:
        return
    file.seek(member.data_start)
    if file.read(member.stored_bytes) != b"little":
        raise UnsupportedByteOrderError(
            "the checkpoint was not saved on a little-endian machine; load it and save it again on one"
        )


def _read_pickle(file: BinaryIO, members: dict[str, Member]) -> bytes:
    member = members["data.pkl"]
    file.seek(member.data_start)
    return file.read(member.stored_bytes)
