"""The members of a `.pt2` archive: which ones there are, and the archive written again.

Layout: torch/export/pt2_archive of torch 2.10 to 2.13.
"""

from __future__ import annotations

import mmap
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from worker.sanitizer import archives
from worker.sanitizer.archives import Member
from worker.sanitizer.programs import pt2_tensors
from worker.sanitizer.programs.pt2_tensors import Payload
from worker.sanitizer.refusals import (
    CompiledPackageError,
    CorruptProgramError,
    CustomObjectError,
    DeflatedMemberError,
    OldExportLayoutError,
    SeveralProgramsError,
    TiedTensorsDisagreeError,
    UnknownMemberError,
    UnsupportedByteOrderError,
)

MAX_MEMBERS = 2 * pt2_tensors.MAX_TENSORS + 32

_MODEL = re.compile(r"models/([A-Za-z0-9_-]{1,100})\.json")
_SMALL = re.compile(r"archive_format|archive_version|byteorder|version|\.data/(version|serialization_id)"
                    r"|\.format_version|\.storage_alignment")  # fmt: skip
_SMALL_MEMBER_BYTES = 4096
_OLD_MEMBERS = ("serialized_exported_program.json", "serialized_state_dict.pt", "serialized_state_dict.json")
_COMPILED = ("data/aotinductor/", "data/executorch/", "data/mtia", "xl_model_weights/")
_ALIGNMENT = 64
# An extra field that readers skip; torch writes the same one to align its records.
_PADDING_ID = b"FB"


@dataclass(frozen=True, slots=True)
class Pt2File:
    """An archive whose members are known, mapped into memory."""

    root: str
    model: str
    members: dict[str, Member]
    view: mmap.mmap
    weights: dict[str, Payload]
    constants: dict[str, Payload]

    def bytes_of(self, name: str) -> bytes:
        """The bytes of a member, by its name below the root."""
        member = self.members[name]
        return self.view[member.data_start : member.data_start + member.stored_bytes]


def read(path: Path) -> Pt2File:
    """Read the directory and the tensors; the graph stays JSON in a member.

    Raises:
        CheckpointRefusedError: the codes of this module's imports.
    """
    with path.open("rb") as file:
        listed = archives.read_directory(file, path.stat().st_size, max_members=MAX_MEMBERS)
        root, members, model = _known_members(listed)
        # A private mapping: torch wants writable memory, and no write may reach the upload.
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    bare = Pt2File(root, model, members, view, {}, {})
    if "byteorder" in members and bare.bytes_of("byteorder") != b"little":
        raise UnsupportedByteOrderError("the program was not saved on a little-endian machine; export it on one")
    weights = _payloads(bare, "weights", "weight_")
    constants = _payloads(bare, "constants", "tensor_")
    twice = weights.keys() & constants.keys()
    if twice:
        raise CorruptProgramError(f"{min(twice)[:80]!r} is a weight and a constant; export the program again")
    used = {payload.member for payload in (*weights.values(), *constants.values())}
    stray = [name for name in members if name.startswith(("data/weights/weight_", "data/constants/tensor_"))]
    if used != set(stray):
        raise CorruptProgramError("the archive holds tensors that nothing describes; export the program again")
    return Pt2File(root, model, members, view, weights, constants)


def write(file: BinaryIO, source: Pt2File, changed: Mapping[str, Tensor], others: Mapping[str, bytes]) -> None:
    """Write the archive again: same members in the same order, other bytes in weights that changed and in `others`.

    Those of `others` that the archive lacks come last.

    Raises:
        TiedTensorsDisagreeError: two names share memory but were given different values.
    """
    new: dict[str, bytes | bytearray] = {**_patched(source, changed), **others}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in dict.fromkeys([*source.members, *others]):
            _append(archive, file, f"{source.root}/{name}", new[name] if name in new else source.bytes_of(name))


def _payloads(bare: Pt2File, folder: str, prefix: str) -> dict[str, Payload]:
    what = f"data/{folder}/{bare.model}_{folder}_config.json"
    return pt2_tensors.read(bare.bytes_of(what), what, bare.members, bare.view, folder=folder, prefix=prefix)


def _append(archive: zipfile.ZipFile, file: BinaryIO, name: str, data: bytes | bytearray) -> None:
    # A fixed date: the bytes depend on the upload and the tensors alone.
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    unpadded = file.tell() + 30 + len(name.encode()) + 4
    entry.extra = _PADDING_ID + (padding := -unpadded % _ALIGNMENT).to_bytes(2, "little") + b"Z" * padding
    archive.writestr(entry, data)


def _patched(source: Pt2File, changed: Mapping[str, Tensor]) -> dict[str, bytearray]:
    """The members that change, in full."""
    patched: dict[str, bytearray] = {}
    for name, value in changed.items():
        payload = source.weights[name]
        if _same_bytes(payload.tensor, value):
            continue
        data = patched.setdefault(payload.member, bytearray(source.bytes_of(payload.member)))
        _on(data, payload.tensor).copy_(value)
    for name, value in changed.items():
        payload = source.weights[name]
        if payload.member in patched and not _same_bytes(_on(patched[payload.member], payload.tensor), value):
            raise TiedTensorsDisagreeError("two names of the program share memory but were given different values")
    return patched


def _on(data: bytearray, like: Tensor) -> Tensor:
    """The view that `like` is of its member, on other bytes."""
    flat = torch.frombuffer(data, dtype=like.dtype)
    return flat.as_strided(like.shape, like.stride(), like.storage_offset())


def _same_bytes(left: Tensor, right: Tensor) -> bool:
    return torch.equal(
        left.detach().contiguous().reshape(-1).view(torch.uint8),
        right.detach().contiguous().reshape(-1).view(torch.uint8),
    )


def _known_members(listed: list[Member]) -> tuple[str, dict[str, Member], str]:
    """Root folder, members by their names below it, and the program's name."""
    roots = {member.name.split("/", 1)[0] for member in listed}
    members = {member.name.partition("/")[2]: member for member in listed}
    _refuse_other_layouts([member.name for member in listed], list(members))
    models = [found.group(1) for name in members if (found := _MODEL.fullmatch(name))]
    if len(models) > 1:
        raise SeveralProgramsError(f"the archive holds {len(models)} programs; export the one to sanitize alone")
    if not models or len(roots) != 1:
        raise UnknownMemberError("the archive is not one that torch.export.save wrote; export the program with it")
    model = models[0]
    needed = (
        f"data/weights/{model}_weights_config.json",
        f"data/constants/{model}_constants_config.json",
        f"data/sample_inputs/{model}.pt",
    )
    missing = [name for name in needed if name not in members]
    if missing:
        raise CorruptProgramError(f"the archive has no {missing[0]}; export the program again")
    for name, member in members.items():
        if member.method != archives.STORED:
            raise DeflatedMemberError(f"{name!r} is compressed, which torch.export.save never does; export it again")
        is_tensor = re.fullmatch(r"data/(weights/weight|constants/tensor)_[0-9]{1,9}", name)
        if not is_tensor and name not in (f"models/{model}.json", *needed) and not _SMALL.fullmatch(name):
            raise UnknownMemberError(
                f"the archive has the member {name[:100]!r}, which an exported classifier has no need of; "
                "export the program again, without extra files"
            )
        if _SMALL.fullmatch(name) and member.unpacked_bytes > _SMALL_MEMBER_BYTES:
            raise UnknownMemberError(f"{name!r} is longer than torch.export.save writes it; export the program again")
    return roots.pop(), members, model


def _refuse_other_layouts(full_names: list[str], names: list[str]) -> None:
    if any(
        name in _OLD_MEMBERS or name.endswith(("/" + _OLD_MEMBERS[0], "/" + _OLD_MEMBERS[1])) for name in full_names
    ):
        raise OldExportLayoutError(
            "this is an exported program in the layout of an older torch, whose weights are pickles; "
            "load it where you trust it and save it again with torch 2.10 or newer (torch.export.save)"
        )
    if any(re.fullmatch(r"data/(weights|constants)/[^/]+\.pt", name) for name in names):
        raise OldExportLayoutError(
            "the weights of this exported program are pickles, as an older torch wrote them; load it where you trust "
            "it and save it again with torch 2.10 or newer (torch.export.save)"
        )
    if any(name.startswith(_COMPILED) for name in names):
        raise CompiledPackageError(
            "the archive holds compiled code (AOTInductor, ExecuTorch), which would run on the worker; "
            "save the exported program itself with torch.export.save"
        )
    if any(name.startswith(("data/constants/custom_obj_", "data/constants/opaque_obj_")) for name in names):
        raise CustomObjectError("the program holds custom objects, which are pickles; export a model of tensors alone")
