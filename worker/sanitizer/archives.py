"""The zip directory, read strictly by ourselves before any library opens the file.

Readers of zip disagree on odd files: on what stands before the first member, after the directory, or twice in it. We
accept only files on which they cannot disagree, and say how large each member is before a byte of it is unpacked.
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass
from typing import BinaryIO

from worker.sanitizer.refusals import (
    ArchivePathRefusedError,
    ArchiveTooLargeError,
    CorruptArchiveError,
    DuplicateMemberError,
    EncryptedArchiveError,
    UnsupportedCompressionError,
)

MAGIC = b"PK\x03\x04"
STORED = 0
DEFLATED = 8
MAX_MEMBERS = 200_000
MAX_DIRECTORY_BYTES = 32 * 2**20
MAX_NAME_CHARACTERS = 1024

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_FLAG_ENCRYPTED = 0x1 | 0x40 | 0x2000
_FLAG_DESCRIPTOR = 0x8
_FLAG_UTF8 = 0x800
_ZIP64_EXTRA = 1
_LIMIT16 = 0xFFFF
_LIMIT32 = 0xFFFFFFFF
_LAST_PRINTABLE = 0x20


@dataclass(frozen=True, slots=True)
class Member:
    """One file of the archive; `data_start` is where its bytes begin, in the archive as stored.

    `header_start` and `entry_start` are where its local header and its entry in the directory begin.
    """

    name: str
    method: int
    stored_bytes: int
    unpacked_bytes: int
    data_start: int
    is_directory: bool
    header_start: int
    entry_start: int


@dataclass(frozen=True, slots=True)
class _Entry:
    raw_name: bytes
    flags: int
    method: int
    stored_bytes: int
    unpacked_bytes: int
    local_start: int
    attributes: int
    made_by_unix: bool
    entry_start: int


def read_directory(file: BinaryIO, file_bytes: int, *, max_members: int = MAX_MEMBERS) -> list[Member]:
    """Return the members in directory order, after checking that directory, local headers and file agree.

    Raises:
        UploadRefusedError: one of its archive rules (corrupt, encrypted, duplicate, unsafe path, too large).
    """
    start, size, count = _locate(file, file_bytes, max_members)
    entries = _parse_entries(_read_at(file, start, size), count, start)
    names = [_safe_name(entry) for entry in entries]
    # Loaders on some systems ignore case, so names that differ in it only would be two files for one reader.
    seen: set[str] = set()
    for name in names:
        folded = name.casefold().rstrip("/")
        if folded in seen:
            raise DuplicateMemberError(
                f"the archive holds {name!r} twice (or in two spellings); write each member once and upload again"
            )
        seen.add(folded)
    # A 64-bit place may also be one that no file can have, and that seek refuses in its own words.
    if any(entry.local_start >= start for entry in entries):
        raise CorruptArchiveError("a member of the zip file lies behind its directory; write the file again")
    members = [_locate_data(file, entry, name) for entry, name in zip(entries, names, strict=True)]
    _refuse_overlap(entries, members, start)
    return members


def refuse_bombs(members: list[Member], *, max_bytes: int, max_ratio: int, free_bytes: int) -> None:
    """Refuse members that unpack to more than `max_bytes` together, or by more than `max_ratio` beyond `free_bytes`."""
    unpacked = sum(member.unpacked_bytes for member in members)
    stored = sum(member.stored_bytes for member in members)
    if unpacked > max_bytes:
        raise ArchiveTooLargeError(f"the archive unpacks to {unpacked} bytes; at most {max_bytes} are accepted")
    if unpacked > free_bytes and unpacked > max_ratio * max(stored, 1):
        raise ArchiveTooLargeError(
            f"the archive unpacks from {stored} to {unpacked} bytes, more than {max_ratio} times; "
            "save it without compression and upload again"
        )


def _read_at(file: BinaryIO, start: int, size: int) -> bytes:
    file.seek(start)
    data = file.read(size)
    if len(data) != size:
        raise CorruptArchiveError("the zip file ends too early; upload the whole file again")
    return data


def _locate(file: BinaryIO, file_bytes: int, max_members: int) -> tuple[int, int, int]:
    """Return start, size and number of entries of the directory, which must reach to the end record exactly."""
    end_start = file_bytes - _END.size
    if end_start < 0:
        raise CorruptArchiveError("the zip file is cut off; upload the whole file again")
    magic, disk, directory_disk, on_disk, count, size, start, comment = _END.unpack(
        _read_at(file, end_start, _END.size)
    )
    if magic != b"PK\x05\x06" or comment != 0:
        raise CorruptArchiveError(
            "the zip file has no directory at its end (cut off, or bytes or a comment follow it); "
            "upload the whole file, without a zip comment"
        )
    needs_64 = _LIMIT16 in (disk, directory_disk, on_disk, count) or _LIMIT32 in (size, start)
    locator_start = end_start - _END64_LOCATOR.size
    directory_end = end_start
    if locator_start >= 0:
        magic, locator_disk, end64_start, num_disks = _END64_LOCATOR.unpack(
            _read_at(file, locator_start, _END64_LOCATOR.size)
        )
        if magic == b"PK\x06\x07":
            if locator_disk != 0 or num_disks != 1 or end64_start != locator_start - _END64.size or end64_start < 0:
                raise CorruptArchiveError("the zip64 end record is not where it belongs; write the file again")
            end64 = _END64.unpack(_read_at(file, end64_start, _END64.size))
            # The plain record repeats these numbers unless they do not fit; readers differ in which one they believe.
            if (
                end64[0] != b"PK\x06\x06"
                or end64[1] != _END64.size - 12
                or not _same_numbers((disk, directory_disk, on_disk, count, size, start), end64[4:])
            ):
                raise CorruptArchiveError("the two end records of the zip file differ; write the file again")
            disk, directory_disk, on_disk, count, size, start = end64[4:]
            directory_end = end64_start
        elif needs_64:
            raise CorruptArchiveError("the zip64 end record is missing; write the file again")
    if disk or directory_disk or on_disk != count or start + size != directory_end:
        raise CorruptArchiveError("the zip directory does not fit the file; upload the whole file again")
    if count > max_members or size > MAX_DIRECTORY_BYTES:
        raise ArchiveTooLargeError(f"the archive has {count} members; at most {max_members} are accepted")
    return start, size, count


def _same_numbers(plain: tuple[int, ...], wide: tuple[int, ...]) -> bool:
    limits = (_LIMIT16, _LIMIT16, _LIMIT16, _LIMIT16, _LIMIT32, _LIMIT32)
    return all(few in (limit, many) for few, many, limit in zip(plain, wide, limits, strict=True))


def _parse_entries(directory: bytes, count: int, directory_start: int) -> list[_Entry]:
    entries = []
    position = 0
    for _ in range(count):
        if position + _ENTRY.size > len(directory):
            raise CorruptArchiveError("the zip directory is cut off; upload the whole file again")
        fields = _ENTRY.unpack_from(directory, position)
        magic, made_by, _, flags, method, _, _, _, stored, unpacked, name_bytes, extra_bytes, comment_bytes = fields[
            :13
        ]
        disk, _, attributes, local_start = fields[13:]  # fmt: skip
        entry_start = directory_start + position
        name_start = position + _ENTRY.size
        extra_start = name_start + name_bytes
        position = extra_start + extra_bytes + comment_bytes
        if magic != b"PK\x01\x02" or position > len(directory):
            raise CorruptArchiveError("an entry of the zip directory is damaged; upload the whole file again")
        extra = directory[extra_start : extra_start + extra_bytes]
        unpacked, stored, local_start = _widen(extra, (unpacked, stored, local_start))
        if disk != 0:
            raise CorruptArchiveError("the zip file is one part of several; upload one whole file")
        entries.append(
            _Entry(
                raw_name=directory[name_start:extra_start],
                flags=flags,
                method=method,
                stored_bytes=stored,
                unpacked_bytes=unpacked,
                local_start=local_start,
                attributes=attributes,
                made_by_unix=made_by >> 8 == 3,
                entry_start=entry_start,
            )
        )
    if position != len(directory):
        raise CorruptArchiveError("the zip directory holds more than its entries; write the file again")
    return entries


def _widen(extra: bytes, plain: tuple[int, int, int]) -> tuple[int, int, int]:
    """Take from the zip64 extra field those numbers that do not fit 32 bits."""
    wide: list[bytes] = []
    position = 0
    while position + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, position)
        if position + 4 + size > len(extra):
            raise CorruptArchiveError("an extra field of the zip directory is damaged; write the file again")
        if kind == _ZIP64_EXTRA:
            wide.append(extra[position + 4 : position + 4 + size])
        position += 4 + size
    if len(wide) > 1:
        raise CorruptArchiveError("a zip entry states its size twice; write the file again")
    values = []
    rest = wide[0] if wide else b""
    for number in plain:
        if number == _LIMIT32:
            if len(rest) < 8:
                raise CorruptArchiveError("a zip64 size is missing; write the file again")
            values.append(int.from_bytes(rest[:8], "little"))
            rest = rest[8:]
        else:
            values.append(number)
    return values[0], values[1], values[2]


def _safe_name(entry: _Entry) -> str:
    try:
        name = entry.raw_name.decode("utf-8" if entry.flags & _FLAG_UTF8 else "cp437")
    except UnicodeDecodeError as error:
        raise CorruptArchiveError("a member's name is not valid text; write the file again") from error
    parts = name.rstrip("/").split("/")
    if (
        not 0 < len(name) <= MAX_NAME_CHARACTERS
        or any(part in ("", ".", "..") for part in parts)
        or "\\" in name
        or ":" in name
        or any(ord(character) < _LAST_PRINTABLE for character in name)
    ):
        raise ArchivePathRefusedError(
            f"the archive holds a member named {name[:80]!r}; use relative names without '..', '\\' or ':'"
        )
    mode = entry.attributes >> 16
    # Only Unix writers define these bits; regular file and directory are all that we know.
    if entry.made_by_unix and stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ArchivePathRefusedError(f"{name!r} is a link or a device; put the file itself into the archive")
    if entry.flags & _FLAG_ENCRYPTED:
        raise EncryptedArchiveError(f"{name!r} is encrypted; write the archive without a password")
    return name


def _locate_data(file: BinaryIO, entry: _Entry, name: str) -> Member:
    """Compare the local header with the directory's entry and return where the data begin."""
    local = _LOCAL.unpack(_read_at(file, entry.local_start, _LOCAL.size))
    magic, _, flags, method, _, _, _, stored, unpacked, name_bytes, extra_bytes = local
    name_start = entry.local_start + _LOCAL.size
    if (
        magic != MAGIC
        or method != entry.method
        or flags & (_FLAG_ENCRYPTED | _FLAG_DESCRIPTOR) != entry.flags & (_FLAG_ENCRYPTED | _FLAG_DESCRIPTOR)
        or _read_at(file, name_start, name_bytes) != entry.raw_name
    ):
        raise CorruptArchiveError(f"directory and header of {name!r} differ; write the file again")
    if not flags & _FLAG_DESCRIPTOR and (
        stored not in (entry.stored_bytes, _LIMIT32) or unpacked not in (entry.unpacked_bytes, _LIMIT32)
    ):
        raise CorruptArchiveError(f"directory and header of {name!r} differ in size; write the file again")
    if method not in (STORED, DEFLATED):
        raise UnsupportedCompressionError(f"{name!r} is compressed by method {method}; use stored or deflate")
    if method == STORED and entry.stored_bytes != entry.unpacked_bytes:
        raise CorruptArchiveError(f"{name!r} is stored but states two sizes; write the file again")
    return Member(
        name=name,
        method=method,
        stored_bytes=entry.stored_bytes,
        unpacked_bytes=entry.unpacked_bytes,
        data_start=name_start + name_bytes + extra_bytes,
        is_directory=name.endswith("/"),
        header_start=entry.local_start,
        entry_start=entry.entry_start,
    )


def _refuse_overlap(entries: list[_Entry], members: list[Member], directory_start: int) -> None:
    spans = sorted((e.local_start, m.data_start + m.stored_bytes) for e, m in zip(entries, members, strict=True))
    if spans and spans[0][0] != 0:
        raise CorruptArchiveError("bytes stand before the first member of the zip file; write the file again")
    starts = [start for start, _ in spans[1:]] + [directory_start]
    if any(end > following for (_, end), following in zip(spans, starts, strict=True)):
        raise CorruptArchiveError("members of the zip file overlap; write the file again")
