"""Pickles that would run code, written instruction by instruction: the code makes one empty file and does no more.

Each is a way in that a loader or a scanner has been known to overlook; none of them is a payload.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from tests.hostile.case import Case, case
from tests.sanitizer.test_checkpoint_hostile import members_of, torch_bytes, without, zipped

Program = Callable[[str], bytes]


def text(value: str) -> bytes:
    """The instruction that pushes a text."""
    data = value.encode()
    return b"X" + struct.pack("<L", len(data)) + data


def call(module: str, name: str, *arguments: bytes) -> bytes:
    """The instructions that call a function."""
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def stack_global(module: str, name: str) -> bytes:
    """The newer way to name a function, which splits it over two texts."""
    return text(module) + text(name) + b"\x93"


# Functions of the standard library and of what a worker has installed, each of which makes a file.
CALLS: dict[str, Program] = {
    "os-mkdir": lambda path: call("os", "mkdir", text(path)),
    "posix-mkdir": lambda path: call("posix", "mkdir", text(path)),
    "open": lambda path: call("builtins", "open", text(path), text("w")),
    "python2-open": lambda path: call("__builtin__", "open", text(path), text("w")),
    "io-open": lambda path: call("io", "open", text(path), text("w")),
    "file-io": lambda path: call("_io", "FileIO", text(path), text("w")),
    "codecs-open": lambda path: call("codecs", "open", text(path), text("w")),
    "gzip": lambda path: call("gzip", "open", text(path), text("wb")),
    "zip-file": lambda path: call("zipfile", "ZipFile", text(path), text("w")),
    "tar-file": lambda path: call("tarfile", "open", text(path), text("w")),
    "log-file": lambda path: call("logging", "FileHandler", text(path)),
    "exec": lambda path: call("builtins", "exec", text(f"open({path!r}, 'w').close()")),
    "eval": lambda path: call("builtins", "eval", text(f"open({path!r}, 'w').close()")),
    "compile-and-exec": lambda path: call(
        "builtins", "exec", call("builtins", "compile", text(f"open({path!r}, 'w').close()"), text("x"), text("exec"))
    ),
    "getattr": lambda path: (
        call("builtins", "getattr", call("importlib", "import_module", text("os")), text("mkdir"))
        + b"(" + text(path) + b"tR"
    ),
    "attrgetter": lambda path: (
        call("operator", "attrgetter", text("mkdir")) + b"(" + call("importlib", "import_module", text("os")) + b"tR("
        + text(path) + b"tR"
    ),
    "method-caller": lambda path: (
        call("operator", "methodcaller", text("touch")) + b"(" + call("pathlib", "Path", text(path)) + b"tR"
    ),
    "partial": lambda path: call("functools", "partial", b"cos\nmkdir\n", text(path)) + b"(tR",
    "map": lambda path: call("builtins", "list", call("builtins", "map", b"cos\nmkdir\n", b"(" + text(path) + b"l")),
    "memory-map": lambda path: call("numpy", "memmap", text(path), text("uint8"), text("w+"), b"K\0", b"(K\1t"),
    "numpy-save": lambda path: call("numpy", "save", call("builtins", "open", text(path), text("wb")), b"K\1"),
    "torch-save": lambda path: call("torch", "save", b"K\1", text(path)),
    "torch-serialization-save": lambda path: call("torch.serialization", "save", b"K\1", text(path)),
    "deep-import": lambda path: call("torch.serialization.os", "mkdir", text(path)),
    "subprocess": lambda path: call("subprocess", "call", b"(" + text("touch") + text(path) + b"l"),
    "os-system": lambda path: call("os", "system", text(f"touch {path}")),
    "inst": lambda path: b"(" + text(path) + b"ios\nmkdir\n",
    "object": lambda path: b"(cos\nmkdir\n" + text(path) + b"o",
    "stack-global": lambda path: stack_global("os", "mkdir") + text(path) + b"\x85R",
    "stack-global-memo": lambda path: (
        text("os") + b"q\x05" + b"0" + text("mkdir") + b"q\x060" + b"h\x05h\x06\x93" + text(path) + b"\x85R"
    ),
    "in-a-list": lambda path: b"](" + call("os", "mkdir", text(path)) + b"K\1e",
    "as-a-key": lambda path: b"}" + call("os", "mkdir", text(path)) + b"K\1s",
    "behind-a-state-dict": lambda path: b"ccollections\nOrderedDict\n)R0" + call("os", "mkdir", text(path)),
    "thrown-away": lambda path: call("os", "mkdir", text(path)) + b"0}",
    "then-broken": lambda path: call("os", "mkdir", text(path)) + b"\xff",
    "as-build-state": lambda path: b"ccollections\nOrderedDict\n)R" + call("os", "mkdir", text(path)) + b"b",
}  # fmt: skip


def body(program: Program, marker: Path, protocol: int = 2) -> bytes:
    """A whole pickle."""
    return b"\x80" + bytes([protocol]) + program(str(marker)) + b"."


def in_torch_zip(data: bytes) -> bytes:
    """As `data.pkl` of a checkpoint."""
    return zipped({**members_of(torch_bytes()), "archive/data.pkl": data})


class _Call:
    """Pickles to the call that makes a folder at the marker's place."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> object:
        return Path.mkdir, (self.marker,)


def _object_array(marker: Path) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, images=np.array([_Call(marker), None], dtype=object), labels=np.arange(2))
    return buffer.getvalue()


def _object_labels(marker: Path) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, images=np.zeros((2, 3, 8, 6), np.uint8), labels=np.array([_Call(marker), 1], dtype=object))
    return buffer.getvalue()


def _crc_of_another(marker: Path) -> bytes:
    """A wrong checksum: scanners that unpack with zipfile stop here, and loaders that do not check go on."""
    pickled = body(CALLS["os-mkdir"], marker)
    data = bytearray(in_torch_zip(pickled))
    for header, offset in ((b"PK\3\4", 14), (b"PK\1\2", 16)):
        at = data.index(b"archive/data.pkl" if header == b"PK\3\4" else b"PK\1\2")
        at = data.rindex(header, 0, at + 4)
        data[at + offset] ^= 0xFF
    return bytes(data)


def _flagged_encrypted(marker: Path) -> bytes:
    data = bytearray(in_torch_zip(body(CALLS["os-mkdir"], marker)))
    data[data.index(b"PK\1\2") + 8] |= 1
    return bytes(data)


def _torchscript(marker: Path) -> bytes:
    return zipped({**members_of(torch_bytes()), "archive/constants.pkl": body(CALLS["os-mkdir"], marker)})


def _whole_module(marker: Path) -> bytes:
    module = torch.nn.Linear(2, 2)
    module.extra = _Call(marker)
    return torch_bytes(module)


def _tar(marker: Path) -> bytes:
    import tarfile  # noqa: PLC0415

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        pickled = body(CALLS["os-mkdir"], marker)
        for name in ("sys_info", "pickle", "storages", "tensors"):
            entry = tarfile.TarInfo(name)
            entry.size = len(pickled)
            archive.addfile(entry, io.BytesIO(pickled))
    return buffer.getvalue()


def _two_pickles(marker: Path) -> bytes:
    good = members_of(torch_bytes())["archive/data.pkl"]
    return in_torch_zip(good + body(CALLS["os-mkdir"], marker))


REFUSED = ("pickled_module", "unsupported_pickle", "unsupported_tensor")
_MKDIR = CALLS["os-mkdir"]


def cases() -> list[Case]:
    """Every call in a checkpoint and alone, and other places where a pickle hides."""
    found = []
    for name, program in CALLS.items():
        for protocol in (2, 4) if name in ("os-mkdir", "stack-global") else (2,):
            where = name if protocol == 2 else f"{name}-protocol-{protocol}"
            pickled = lambda marker, p=program, v=protocol: body(p, marker, v)  # noqa: E731
            found += [
                case(f"torch-code-{where}", "torch", lambda m, p=pickled: in_torch_zip(p(m)), *REFUSED,
                     carries_code=True),
                case(f"pickle-code-{where}", "pickle", pickled, "bare_pickle", carries_code=True),
            ]  # fmt: skip
    others: list[tuple[str, str, Callable[[Path], bytes], str]] = [
        ("torch", "legacy", lambda m: torch_bytes(_Call(m), _use_new_zipfile_serialization=False), "legacy_checkpoint"),
        ("torch", "tar", _tar, "legacy_checkpoint"),
        ("torch", "wrong-checksum", _crc_of_another, "pickled_module"),
        ("torch", "marked-encrypted", _flagged_encrypted, "encrypted_archive corrupt_archive"),
        ("torch", "torchscript", _torchscript, "torchscript"),
        ("torch", "whole-module", _whole_module, "pickled_module"),
        ("torch", "deflated", lambda m: zipped(
            {**members_of(torch_bytes()), "archive/data.pkl": body(_MKDIR, m)}, zipfile.ZIP_DEFLATED),
         "deflated_member"),
        ("torch", "second-root", lambda m: zipped(
            {**members_of(torch_bytes()), "other/data.pkl": body(_MKDIR, m)}), "unknown_archive_member"),
        ("torch", "pickle-of-another-name", lambda m: zipped(
            {**members_of(torch_bytes()), "archive/extra.pkl": body(_MKDIR, m)}), "unknown_archive_member"),
        ("torch", "no-known-suffix", lambda m: zipped(
            {**members_of(torch_bytes()), "archive/notes": body(_MKDIR, m)}), "unknown_archive_member"),
        ("torch", "named-in-upper-case", lambda m: zipped(
            {**without("archive/data.pkl"), "archive/DATA.PKL": body(_MKDIR, m)}), "unknown_archive_member"),
        ("torch", "behind-the-pickle", _two_pickles, "neutralised"),
        ("pickle", "protocol-0", lambda m: b"cos\nmkdir\n(V" + str(m).encode() + b"\ntR.",
         "bare_pickle unknown_checkpoint_format"),
        ("pickle", "framed", lambda m: pickle.dumps(_Call(m), protocol=5), "bare_pickle"),
        ("pickle", "joblib-like", lambda m: pickle.dumps({"model": [_Call(m)]}, protocol=3), "bare_pickle"),
        ("pickle", "behind-spaces", lambda m: b"   " + body(_MKDIR, m), "unknown_checkpoint_format"),
        ("pickle", "gif-before", lambda m: b"S'GIF89a'\n0" + body(_MKDIR, m), "unknown_checkpoint_format bare_pickle"),
        ("npz", "object-images", _object_array, "object_array"),
        ("npz", "object-labels", _object_labels, "object_array"),
        ("npz", "pickle-as-array", lambda m: zipped({"images.npy": body(_MKDIR, m)}), "corrupt_dataset"),
        ("images", "pickle-as-image", lambda m: zipped({"cat/1.png": body(_MKDIR, m)}), "corrupt_dataset"),
        ("images", "pickle-as-metadata", lambda m: zipped({"a.png": b"x", "metadata.csv": body(_MKDIR, m)}),
         "corrupt_dataset wrong_folder_layout"),
    ]  # fmt: skip
    return found + [
        case(f"{kind}-code-{name}", kind, build, *codes.split(), carries_code=True)
        for kind, name, build, codes in others
    ]
