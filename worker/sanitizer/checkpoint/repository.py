"""A Hugging Face repository in a zip: config.json, model.safetensors, and perhaps preprocessor_config.json.

The archive that goes out is the one that came in, byte for byte, but for the bytes of changed weights and the three
places that hold their checksum.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from worker.sanitizer import archives, safetensors_file
from worker.sanitizer.architectures import hugging_face
from worker.sanitizer.archives import Member
from worker.sanitizer.refusals import (
    CorruptArchiveError,
    CorruptConfigError,
    DeflatedMemberError,
    IncompleteRepositoryError,
    UnknownMemberError,
)
from worker.sanitizer.safetensors_file import SafetensorsFile

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
PREPROCESSOR = "preprocessor_config.json"
MAX_JSON_BYTES = hugging_face.MAX_BYTES

_CRC = struct.Struct("<L")
_CRC_IN_HEADER, _CRC_IN_ENTRY, _FLAGS_IN_HEADER = 14, 16, 6
_FLAG_DESCRIPTOR = 0x8
_DESCRIPTOR = b"PK\x07\x08"
_COPY_BYTES = 2**22
# What else may tell that this is one.
_SIGNS = frozenset({CONFIG, WEIGHTS, "pytorch_model.bin", "model.safetensors.index.json"})


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository that was read.

    Attributes:
        described: The network of its config.json.
        weights: Its model.safetensors; the tensors view the archive.
        member: Where the weights lie in the archive.
        view: The archive.
        checksums: Where the archive states the checksum of the weights.
    """

    described: hugging_face.Described
    weights: SafetensorsFile
    member: Member
    view: mmap.mmap
    checksums: tuple[int, ...]


def looks_like(names: Iterable[str]) -> bool:
    """Say whether an archive's members are those of a Hugging Face repository."""
    return any(name.rsplit("/", 1)[-1] in _SIGNS for name in names)


def read(path: Path, members: list[Member]) -> Repository:
    """Read a repository whose directory was checked.

    Raises:
        CheckpointRefusedError: its code names the rule.
    """
    found = _known_members(members)
    missing = [name for name in (CONFIG, WEIGHTS) if name not in found]
    if missing:
        raise IncompleteRepositoryError(
            f"the zip has no {missing[0]}; put config.json and model.safetensors of one model into it, side by side"
        )
    member = found[WEIGHTS]
    if member.method != archives.STORED:
        raise DeflatedMemberError(
            f"{member.name!r} is compressed; zip the files without compression (zip -0), which weights hardly need"
        )
    with path.open("rb") as file:
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    described = hugging_face.parse(_unpack(view, found[CONFIG]))
    if PREPROCESSOR in found:
        hugging_face.refuse_code(_unpack(view, found[PREPROCESSOR]), PREPROCESSOR)
    return Repository(
        described=described,
        weights=safetensors_file.read(path, start=member.data_start, size=member.stored_bytes),
        member=member,
        view=view,
        checksums=_checksums(view, member),
    )


def write(file: BinaryIO, source: Repository, tensors: Mapping[str, Tensor]) -> None:
    """Write the archive again around changed weights."""
    file.writelines(source.view[start : start + _COPY_BYTES] for start in range(0, len(source.view), _COPY_BYTES))
    checksum = 0
    file.seek(source.member.data_start)
    for part in safetensors_file.parts(source.weights, dict(tensors)):
        checksum = zlib.crc32(part, checksum)
        file.write(part)
    for place in source.checksums:
        file.seek(place)
        file.write(_CRC.pack(checksum))
    file.seek(0, 2)


def _known_members(members: list[Member]) -> dict[str, Member]:
    """The files by name; they lie at the top, or all in one folder."""
    files = [member for member in members if not member.is_directory]
    folders = {member.name.rpartition("/")[0] for member in files}
    others = [member for member in members if member.is_directory and member.name.rstrip("/") not in folders]
    if len(folders) != 1 or "/" in next(iter(folders)) or others:
        raise UnknownMemberError(
            "the zip of a Hugging Face repository holds several folders; put config.json and model.safetensors into "
            "it, side by side, and nothing else"
        )
    found = {member.name.rpartition("/")[2]: member for member in files}
    unknown = sorted(set(found) - {CONFIG, WEIGHTS, PREPROCESSOR})
    if unknown:
        raise UnknownMemberError(
            f"the zip of a Hugging Face repository holds {unknown[0][:100]!r}; it may hold config.json, "
            "model.safetensors in one piece and preprocessor_config.json alone (docs/hugging-face.md)"
        )
    return found


def _unpack(view: mmap.mmap, member: Member) -> bytes:
    if member.unpacked_bytes > MAX_JSON_BYTES or member.stored_bytes > MAX_JSON_BYTES:
        raise CorruptConfigError(
            f"{member.name!r} has more than {MAX_JSON_BYTES} bytes; leave out what it does not need"
        )
    stored = view[member.data_start : member.data_start + member.stored_bytes]
    if member.method == archives.STORED:
        return stored
    try:
        unpacking = zlib.decompressobj(-zlib.MAX_WBITS)
        data = unpacking.decompress(stored, member.unpacked_bytes + 1)
    except zlib.error as error:
        raise CorruptArchiveError(f"{member.name!r} is damaged; upload the whole file again") from error
    if len(data) != member.unpacked_bytes or not unpacking.eof or unpacking.unused_data:
        raise CorruptArchiveError(f"{member.name!r} is damaged; upload the whole file again")
    return data


def _checksums(view: mmap.mmap, member: Member) -> tuple[int, ...]:
    """In the directory, and in the local header or, where the archive was streamed, behind the data."""
    in_directory = member.entry_start + _CRC_IN_ENTRY
    if not view[member.header_start + _FLAGS_IN_HEADER] & _FLAG_DESCRIPTOR:
        return in_directory, member.header_start + _CRC_IN_HEADER
    behind = member.data_start + member.stored_bytes
    if view[behind : behind + len(_DESCRIPTOR)] == _DESCRIPTOR:
        behind += len(_DESCRIPTOR)
    if view[behind : behind + _CRC.size] != view[in_directory : in_directory + _CRC.size]:
        raise CorruptArchiveError(f"the checksums of {member.name!r} differ; write the zip again")
    return in_directory, behind
