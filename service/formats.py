"""What a file is, by its first bytes and its length. Nothing is parsed here: that is the isolated child's work."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import BinaryIO, Literal

from service.errors import UnprocessableError

ModelFormat = Literal["safetensors", "torch_zip", "pt2", "onnx", "hugging_face"]
DatasetFormat = Literal["npz", "safetensors", "image_zip", "parquet"]

MAX_SAFETENSORS_HEADER_BYTES = 4 * 1024 * 1024
# A zip ends with its directory's end record: 22 bytes and a comment of at most 64 KiB.
_ZIP_TAIL_BYTES = 22 + 65_535
_HEAD_BYTES = 1024
_ZIP_END = struct.Struct("<4s4H2LH")
# Of some 20,000 members; a longer directory is no classifier's.
_MAX_DIRECTORY_BYTES = 4 * 1024 * 1024
_ZIP_ENTRY = struct.Struct("<4s6H3L5H2L")
_REPOSITORY_MEMBERS = frozenset({"config.json", "model.safetensors", "model.safetensors.index.json"})
_PROGRAM_MEMBER = re.compile(rb"/(?:models/[A-Za-z0-9_-]{1,100}\.json|data/weights/weight_[0-9]|archive_format)")

# What may follow the version of ONNX's format: the producer's names and notes, the graph, opsets, metadata.
_AFTER_ONNX_VERSION = frozenset(b"\x12\x1a\x22\x28\x32\x3a\x42\x72")
_PROTOBUF_NUMBER, _PROTOBUF_BYTES = 0, 2
_MAX_ONNX_FIELDS = 10_000

_SAVE_MODEL = (
    "Save the weights with safetensors.torch.save_file(model.state_dict(), path), "
    "or with torch.save(model.state_dict(), path), or the whole model with torch.export.save(program, path) as .pt2 "
    "or with torch.onnx.export(model, images, path, external_data=False) as ONNX, "
    "or zip the config.json and model.safetensors of a Hugging Face repository (zip -0), "
    "and upload that file."
)
_SAVE_DATASET = (
    "Save it with numpy.savez(path, images=images, labels=labels), images of shape (N, C, H, W), as safetensors with "
    "the same two tensors, as a zip of one folder of PNG or JPEG files per class, or as Parquet in the layout of "
    "Hugging Face datasets, and upload that file."
)

# First bytes that name what was sent instead. A refusal that knows what it sees is worth more than 'unknown format'.
_KNOWN: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "a gzip file; unpack it first"),
    (b"BZh", "a bzip2 file; unpack it first"),
    (b"\xfd7zXZ\x00", "an xz file; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd file; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x89HDF", "an HDF5 (Keras) file, for which docs/keras.md has the steps"),
    (b"GGUF", "a GGUF file"),
    (b"\x93NUMPY", "a single .npy array"),
    (b"\x89PNG", "a single PNG image"),
    (b"\xff\xd8\xff", "a single JPEG image"),
    (b"PAR1", "a Parquet file"),
    (b"%PDF", "a PDF document"),
    # torch's magic number, pickled, as torch.save wrote it first.
    (
        b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19",
        "a pickle in the legacy format of torch.save, from before torch 1.6, which can run code when it is loaded",
    ),
    (b"version https://git-lfs", "a Git LFS pointer, not the file it points to; fetch it with git lfs pull"),
)


def of_model(path: Path) -> ModelFormat:
    """The format of a checkpoint.

    Raises:
        UnprocessableError: unsupported_checkpoint_format, truncated_content.
    """
    code = "unsupported_checkpoint_format"
    head = _head(path)
    if _is_safetensors(head):
        _check_safetensors_length(head, path.stat().st_size, code, _SAVE_MODEL)
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        name = _first_member(head)
        if name.endswith((".npy", ".png", ".jpg", ".jpeg")):
            raise _refuse(code, "a zip archive of arrays or images, not of weights", _SAVE_MODEL)
        _check_zip_end(path)
        directory = _zip_directory(path)
        if _PROGRAM_MEMBER.search(b"/" + name.encode()) or _PROGRAM_MEMBER.search(directory):
            return "pt2"
        return "hugging_face" if _is_repository(directory) else "torch_zip"
    if _is_onnx(head):
        _check_onnx_end(path)
        return "onnx"
    raise _refuse(code, _describe(head), _SAVE_MODEL)


def of_dataset(path: Path) -> DatasetFormat:
    """The format of a set of images.

    Raises:
        UnprocessableError: unsupported_dataset_format, truncated_content.
    """
    code = "unsupported_dataset_format"
    head = _head(path)
    if _is_safetensors(head):
        _check_safetensors_length(head, path.stat().st_size, code, _SAVE_DATASET)
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        name = _first_member(head)
        if name.endswith(".pkl"):
            raise _refuse(code, "a file of torch.save, not a set of images", _SAVE_DATASET)
        _check_zip_end(path)
        return "npz" if name.endswith(".npy") else "image_zip"
    if head.startswith(b"PAR1"):
        _check_parquet_end(path)
        return "parquet"
    raise _refuse(code, _describe(head), _SAVE_DATASET)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)


def _is_safetensors(head: bytes) -> bool:
    """Eight bytes of header length, then JSON that begins with a brace."""
    return len(head) > 8 and head[8:9] == b"{" and head[6:8] == b"\x00\x00"


def _is_onnx(head: bytes) -> bool:
    """The version of ONNX's format, a small number, and then one of the fields that its writers put next."""
    return len(head) > 4 and head[0] == 0x08 and 3 <= head[1] < 0x40 and head[2] in _AFTER_ONNX_VERSION


def _check_onnx_end(path: Path) -> None:
    """Go from field to field of the outermost message, which are few; each says how long it is."""
    size = path.stat().st_size
    with path.open("rb") as file:
        for _ in range(_MAX_ONNX_FIELDS):
            if file.tell() >= size:
                break
            kind = _varint(file) & 7
            length = _varint(file) if kind in {_PROTOBUF_NUMBER, _PROTOBUF_BYTES} else 4 if kind == 5 else 8
            if kind != _PROTOBUF_NUMBER:
                file.seek(length, 1)
        if file.tell() > size:
            raise _truncated("an ONNX file that ends within its graph")


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise _truncated("an ONNX file that ends within a number")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            break
    return min(value, 1 << 40)


def _check_safetensors_length(head: bytes, size: int, code: str, advice: str) -> None:
    header_bytes = int.from_bytes(head[:8], "little")
    if header_bytes > MAX_SAFETENSORS_HEADER_BYTES:
        limit = f"a safetensors file whose header is longer than {MAX_SAFETENSORS_HEADER_BYTES} bytes"
        raise _refuse(code, limit, advice)
    if 8 + header_bytes > size:
        raise _truncated("a safetensors file that ends within its header")


def _check_zip_end(path: Path) -> None:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _ZIP_TAIL_BYTES))
        if b"PK\x05\x06" not in file.read():
            raise _truncated("a zip archive without its end")


def _check_parquet_end(path: Path) -> None:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4))
        if file.read() != b"PAR1" or path.stat().st_size < 12:
            raise _truncated("a Parquet file without its footer")


def _zip_directory(path: Path) -> bytes:
    """The zip's directory, cut to the length of a classifier's; the first member alone does not tell formats apart."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _ZIP_END.size))
        end = file.read(_ZIP_END.size)
        if len(end) < _ZIP_END.size or not end.startswith(b"PK\x05\x06"):
            return b""  # a comment follows; the child will say what it thinks of that
        size, start = _ZIP_END.unpack(end)[5:7]
        file.seek(start)
        return file.read(min(size, _MAX_DIRECTORY_BYTES))


def _is_repository(directory: bytes) -> bool:
    """Whether the directory lists a file that repositories of Hugging Face have, at whatever depth."""
    position = 0
    while position + _ZIP_ENTRY.size <= len(directory):
        name_bytes, extra_bytes, comment_bytes = _ZIP_ENTRY.unpack_from(directory, position)[10:13]
        position += _ZIP_ENTRY.size
        name = directory[position : position + name_bytes].decode("utf-8", "replace")
        if name.rsplit("/", 1)[-1] in _REPOSITORY_MEMBERS:
            return True
        position += name_bytes + extra_bytes + comment_bytes
    return False


def _first_member(head: bytes) -> str:
    """The name in the zip's first local header, as far as the first bytes go."""
    length = int.from_bytes(head[26:28], "little")
    return head[30 : 30 + length].decode("utf-8", "replace").lower()


def _describe(head: bytes) -> str:
    for magic, description in _KNOWN:
        if head.startswith(magic):
            return description
    if head[257:262] == b"ustar":
        return "a tar archive (the legacy form of torch.save, or a packed folder)"
    if head[:1] == b"\x80" and head[1:2] in {b"\x01", b"\x02", b"\x03", b"\x04", b"\x05"}:
        return "a bare pickle, which can run code when it is loaded"
    if head.lstrip()[:1] == b"<":
        return "an HTML or XML page; perhaps a download led to a login or an error page"
    if head.lstrip()[:1] in {b"{", b"["}:
        return "JSON text"
    return "of an unknown format"


def _refuse(code: str, what: str, advice: str) -> UnprocessableError:
    return UnprocessableError(f"the body is {what}. {advice}", code=code)


def _truncated(what: str) -> UnprocessableError:
    return UnprocessableError(f"the body is {what}: it was cut off; upload the whole file", code="truncated_content")
