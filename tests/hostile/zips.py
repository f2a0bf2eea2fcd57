"""Zip archives that lie: each field of each record can be set to what it should not be."""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.hostile.case import Case, Format, case

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
FULL = 0xFFFFFFFF
UTF8 = 0x800


@dataclass
class Entry:
    """One member. `local` and `central` replace fields of its two headers by name; `start` its place."""

    name: bytes
    data: bytes = b""
    flags: int = 0
    method: int = 0
    mode: int = stat.S_IFREG | 0o644
    extra: bytes = b""
    packed: bytes | None = None
    local: dict[str, object] = field(default_factory=dict)
    central: dict[str, object] = field(default_factory=dict)
    start: int | None = None
    local_name: bytes | None = None


def archive(
    entries: list[Entry],
    *,
    head: bytes = b"",
    tail: bytes = b"",
    after_directory: bytes = b"",
    end: dict[str, int] | None = None,
    end64: dict[str, int] | None = None,
) -> bytes:
    """Write the archive as told. `end64`, where given, adds the wide end record with these fields replaced."""
    body = bytearray(head)
    starts = []
    for entry in entries:
        starts.append(len(body) if entry.start is None else entry.start)
        if entry.start is None:
            packed = entry.data if entry.packed is None else entry.packed
            fields = {
                "magic": b"PK\3\4", "version": 20, "flags": entry.flags, "method": entry.method, "time": 0, "date": 33,
                "crc": zlib.crc32(entry.data), "stored": len(packed), "unpacked": len(entry.data),
                "name_bytes": len(entry.name), "extra_bytes": 0,
            }  # fmt: skip
            name = entry.name if entry.local_name is None else entry.local_name
            body += _LOCAL.pack(*{**fields, "name_bytes": len(name), **entry.local}.values()) + name + packed
    directory_start = len(body)
    for entry, start in zip(entries, starts, strict=True):
        packed = entry.data if entry.packed is None else entry.packed
        fields = {
            "magic": b"PK\1\2", "made_by": 0x0314, "version": 20, "flags": entry.flags, "method": entry.method,
            "time": 0, "date": 33, "crc": zlib.crc32(entry.data), "stored": len(packed), "unpacked": len(entry.data),
            "name_bytes": len(entry.name), "extra_bytes": len(entry.extra), "comment_bytes": 0, "disk": 0,
            "internal": 0, "attributes": entry.mode << 16, "start": start,
        }  # fmt: skip
        body += _CENTRAL.pack(*{**fields, **entry.central}.values()) + entry.name + entry.extra
    size = len(body) - directory_start
    body += after_directory
    if end64 is not None:
        wide = {
            "magic": b"PK\6\6", "size": _END64.size - 12, "made_by": 45, "version": 45, "disk": 0, "directory_disk": 0,
            "on_disk": len(entries), "count": len(entries), "bytes": size, "start": directory_start,
        }  # fmt: skip
        end64_start = len(body) + end64.pop("shift", 0)
        body += _END64.pack(*{**wide, **end64}.values())
        body += _LOCATOR.pack(b"PK\6\7", 0, end64_start, 1)
    fields = {
        "magic": b"PK\5\6", "disk": 0, "directory_disk": 0, "on_disk": len(entries), "count": len(entries),
        "bytes": size, "start": directory_start, "comment": 0,
    }  # fmt: skip
    return bytes(body + _END.pack(*{**fields, **(end or {})}.values()) + tail)


def wide(*values: int) -> bytes:
    """An extra field with 64-bit sizes."""
    return struct.pack("<2H", 1, 8 * len(values)) + struct.pack(f"<{len(values)}Q", *values)


Lie = Callable[[list[Entry]], bytes]


def _with(**changes: object) -> Lie:
    """One more member with these attributes."""
    return lambda entries: archive([*entries, Entry(**{"name": b"extra", "data": b"x" * 40, **changes})])


def _names(*names: str) -> Lie:
    return lambda entries: archive([*entries, *(Entry(name.encode(), flags=UTF8) for name in names)])


def _overlapping(entries: list[Entry]) -> bytes:
    """The second member lies inside of the first, which is what makes a kilobyte unpack to petabytes."""
    inner = archive([Entry(b"inner", b"y" * 50)])[: 30 + 5 + 50]
    whole = archive([*entries, Entry(b"outer", inner)])
    start = whole.index(b"PK\3\4", whole.index(b"outer"))
    return archive([*entries, Entry(b"outer", inner), Entry(b"inner", b"y" * 50, start=start)])


def _same_place(entries: list[Entry]) -> bytes:
    return archive([*entries, Entry(b"again", entries[0].data, start=0)])


def _second_directory(entries: list[Entry]) -> bytes:
    """Two archives in one file: readers from the front and from the back see different ones."""
    return archive([Entry(b"decoy", b"z")]) + archive(entries)


LIES: dict[str, tuple[Lie, str]] = {
    "comment": (lambda e: archive(e, end={"comment": 4}, tail=b"note"), "corrupt_archive"),
    "comment-with-an-end-record": (lambda e: archive(e, end={"comment": 22}, tail=_END.pack(b"PK\5\6", *[0] * 7)),
                                   "corrupt_archive"),
    "tail": (lambda e: archive(e, tail=b"\0"), "corrupt_archive"),
    "two-archives": (_second_directory, "corrupt_archive"),
    "gap-before-first": (lambda e: archive(e, head=b"PK\3\4" + bytes(60)), "corrupt_archive"),
    "second-disk": (lambda e: archive(e, end={"disk": 1}), "corrupt_archive"),
    "directory-on-second-disk": (lambda e: archive(e, end={"directory_disk": 1}), "corrupt_archive"),
    "member-on-second-disk": (_with(central={"disk": 1}), "corrupt_archive"),
    "fewer-members-declared": (lambda e: archive(e, end={"count": 1, "on_disk": 1}), "corrupt_archive"),
    "more-members-declared": (lambda e: archive(e, end={"count": 99, "on_disk": 99}), "corrupt_archive"),
    "counts-differ": (lambda e: archive(e, end={"on_disk": 1}), "corrupt_archive"),
    "directory-elsewhere": (lambda e: archive(e, end={"start": 3}), "corrupt_archive"),
    "directory-too-long": (lambda e: archive(e, end={"bytes": 2**31}), "corrupt_archive"),
    "bytes-in-directory": (lambda e: archive(e, after_directory=b"?" * 30), "corrupt_archive"),
    "zip64-missing": (lambda e: archive(e, end={"start": FULL}), "corrupt_archive"),
    "zip64-count-differs": (lambda e: archive(e, end64={"count": 1, "on_disk": 1}), "corrupt_archive"),
    "zip64-start-differs": (lambda e: archive(e, end64={"start": 7}), "corrupt_archive"),
    "zip64-elsewhere": (lambda e: archive(e, end64={"shift": -1}), "corrupt_archive"),
    "zip64-longer": (lambda e: archive(e, end64={"size": 2**40}), "corrupt_archive"),
    "zip64-many-members": (lambda e: archive(e, end={"count": 0xFFFF, "on_disk": 0xFFFF},
                                             end64={"count": 2**63, "on_disk": 2**63}), "archive_too_large"),
    "size-zip64-missing": (_with(central={"stored": FULL, "unpacked": FULL}), "corrupt_archive"),
    "size-zip64-short": (_with(central={"stored": FULL, "unpacked": FULL}, extra=wide(40)), "corrupt_archive"),
    "size-zip64-twice": (_with(central={"stored": FULL, "unpacked": FULL}, extra=wide(40, 40) + wide(9, 9)),
                         "corrupt_archive"),
    "size-zip64-exabytes": (_with(central={"stored": FULL, "unpacked": FULL}, extra=wide(2**62, 2**62)),
                            "corrupt_archive"),
    "start-zip64-beyond": (_with(central={"start": FULL}, extra=wide(2**60)), "corrupt_archive"),
    "start-zip64-largest": (_with(central={"start": FULL}, extra=wide(2**64 - 1)), "corrupt_archive"),
    "extra-cut-off": (_with(extra=b"\1\0\xff\xff"), "corrupt_archive"),
    "start-beyond-file": (_with(central={"start": 2**31}), "corrupt_archive"),
    "start-in-directory": (lambda e: archive([*e, Entry(b"extra", start=len(archive(e)) - 40)]), "corrupt_archive"),
    "directory-entry-without-magic": (_with(central={"magic": b"PK\1\3"}), "corrupt_archive"),
    "header-without-magic": (_with(local={"magic": b"PK\3\5"}), "corrupt_archive"),
    "names-differ": (_with(local_name=b"other"), "corrupt_archive"),
    "methods-differ": (_with(local={"method": 8}), "corrupt_archive"),
    "sizes-differ": (_with(local={"stored": 7, "unpacked": 7}), "corrupt_archive"),
    "flags-differ": (_with(local={"flags": 8}), "corrupt_archive"),
    "stored-in-two-sizes": (_with(central={"unpacked": 4000}, local={"unpacked": 4000}), "corrupt_archive"),
    "members-overlap": (_overlapping, "corrupt_archive"),
    "members-in-one-place": (_same_place, "corrupt_archive"),
    "encrypted": (_with(flags=1), "encrypted_archive"),
    "encrypted-strongly": (_with(flags=0x41), "encrypted_archive"),
    "directory-encrypted": (_with(flags=0x2000), "encrypted_archive"),
    "encrypted-in-header-only": (_with(local={"flags": 1}), "corrupt_archive"),
    **{f"method-{number}": (_with(method=number), "unsupported_compression") for number in (1, 6, 9, 12, 14, 93, 99)},
    "symbolic-link": (_with(data=b"/etc/passwd", mode=stat.S_IFLNK | 0o777), "archive_path_refused"),
    "pipe": (_with(mode=stat.S_IFIFO | 0o644), "archive_path_refused"),
    "socket": (_with(mode=stat.S_IFSOCK | 0o644), "archive_path_refused"),
    "character-device": (_with(mode=stat.S_IFCHR | 0o644), "archive_path_refused"),
    "block-device": (_with(mode=stat.S_IFBLK | 0o644), "archive_path_refused"),
    **{
        f"name-{what}": (_names(name), "archive_path_refused")
        for what, name in {
            "parent": "../extra", "parent-within": "a/../../extra", "parent-last": "a/..", "absolute": "/etc/extra",
            "two-slashes": "a//b", "dot": "./a", "drive": "C:extra", "share": "\\\\host\\share", "backslash": "..\\a",
            "stream": "a:stream", "null": "a\0.png", "newline": "a\nb", "escape": "\x1b[2Ja", "slash": "/", "empty": "",
            "long": "n" * 1025,
        }.items()
    },
    "name-no-utf8": (_with(name=b"\xff\xfe", flags=UTF8), "corrupt_archive"),
    "name-overlong-utf8": (_with(name=b"\xc0\xae\xc0\xae/x", flags=UTF8), "corrupt_archive"),
    "name-surrogate": (_with(name=b"\xed\xa0\x80", flags=UTF8), "corrupt_archive"),
    "name-twice": (_names("a", "a"), "duplicate_archive_member"),
    "name-in-two-cases": (_names("a/b", "A/B"), "duplicate_archive_member"),
    "name-in-two-cases-of-unicode": (_names("stra\u00dfe", "STRASSE"), "duplicate_archive_member"),
    "name-with-ligature": (_names("\ufb01le", "file"), "duplicate_archive_member"),
    "folder-named-like-a-file": (_names("a", "a/"), "duplicate_archive_member"),
}  # fmt: skip


def cases(kind: Format, members: Callable[[], dict[str, bytes]]) -> list[Case]:
    """Every lie around the members of a file that would be taken without it."""

    def build(lie: Lie) -> bytes:
        return lie([Entry(name.encode(), data) for name, data in members().items()])

    return [case(f"{kind}-zip-{name}", kind, lambda _, lie=lie: build(lie), code) for name, (lie, code) in LIES.items()]
