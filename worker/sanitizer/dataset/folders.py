"""A zip of images with one folder per class, made by hand or for Hugging Face: first the names, then the images."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from worker.sanitizer.archives import Member
from worker.sanitizer.dataset import metadata, pictures
from worker.sanitizer.dataset.stacking import Stack
from worker.sanitizer.refusals import (
    CorruptDatasetError,
    FolderLayoutError,
    ImageTooLargeError,
    NestedArchiveError,
    NoImagesError,
    SeveralSplitsError,
)
from worker.sanitizer.spec import MAX_CLASSES

SPLITS = frozenset({"train", "training", "test", "testing", "eval", "evaluation", "val", "valid", "validation", "dev"})

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_ARCHIVE_SUFFIXES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst")
# What systems and hubs add, and what no class could be called.
_EXTRA_FILES = frozenset({
    ".DS_Store", "Thumbs.db", "desktop.ini", ".gitattributes", ".gitignore", "README.md", "LICENSE", "LICENSE.txt",
    "dataset_info.json", "dataset_infos.json",
})  # fmt: skip
_SYSTEM_FOLDER = "__MACOSX"
_COPY_BYTES = 2**20
# All that zipfile and zlib raise on damaged bytes.
_ZIP_ERRORS = (
    zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, NotImplementedError, RuntimeError, OSError,
)  # fmt: skip

Placed = tuple[Member, list[str]]


def read(path: Path, members: list[Member], stack: Stack, *, alpha: bool) -> tuple[Tensor, tuple[str, ...]]:
    """Put the images into the stack; return one label for each, and the class names in label order.

    Folders that are all numbers are labels themselves; else labels count the folders in sorted order, empty ones too.
    A `metadata.csv` or `.jsonl` with a column `label` decides instead of the folders.

    Raises:
        DatasetRefusedError: wrong_folder_layout, several_splits, nested_archive, empty_dataset, corrupt_dataset, and
            what decoding and stacking refuse.
    """
    with open_zip(path) as archive:
        files, classes, names = _arrange(archive, members)
        label_of, all_names = _number(names)
        for member in files:
            stack.add(pictures.decode(_whole(archive, member), member.name, alpha=alpha), member.name)
    return torch.tensor([label_of[name] for name in classes], dtype=torch.int64), all_names


def is_extra(parts: list[str]) -> bool:
    """Whether a member is there for a system or a hub, and not for us."""
    return _SYSTEM_FOLDER in parts or parts[-1] in _EXTRA_FILES or parts[-1].startswith("._")


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive whose directory was checked.

    Raises:
        DatasetRefusedError: corrupt_dataset.
    """
    try:
        archive = zipfile.ZipFile(path)
    except _ZIP_ERRORS as error:
        raise CorruptDatasetError("the zip file cannot be opened; write it again") from error
    with archive:
        yield archive


def unpack(archive: zipfile.ZipFile, member: Member) -> Iterator[bytes]:
    """Yield the member in pieces that are together as long as it declares.

    Raises:
        DatasetRefusedError: corrupt_dataset.
    """
    left = member.unpacked_bytes
    try:
        with archive.open(member.name) as file:
            # One byte more than declared would mean that the directory lies.
            while chunk := file.read(min(_COPY_BYTES, left + 1)):
                left -= len(chunk)
                if left < 0:
                    break
                yield chunk
    except _ZIP_ERRORS as error:
        raise CorruptDatasetError(f"{member.name!r} cannot be unpacked; write the zip again") from error
    if left:
        raise CorruptDatasetError(f"{member.name!r} is not of its declared length; write the zip again")


def _whole(archive: zipfile.ZipFile, member: Member) -> bytes:
    return b"".join(unpack(archive, member))


def _arrange(archive: zipfile.ZipFile, members: list[Member]) -> tuple[list[Member], list[str], list[str]]:
    """Find the class of every image: the files in order, the class of each, and all classes in sorted order."""
    kept = [(member, member.name.rstrip("/").split("/")) for member in members]
    kept = [(member, parts) for member, parts in kept if not is_extra(parts)]
    tables = [(member, parts) for member, parts in kept if parts[-1] in metadata.FILES and not member.is_directory]
    kept = [(member, parts) for member, parts in kept if parts[-1] not in metadata.FILES or member.is_directory]
    if not any(not member.is_directory for member, _ in kept):
        raise NoImagesError("the zip holds no image; put one folder of PNG or JPEG files per class into it")
    for member, parts in kept:
        _refuse_other_files(member, parts)
    described = _by_metadata(archive, kept, tables) if tables else None
    return described or _by_folder(kept)


def _by_folder(kept: list[Placed]) -> tuple[list[Member], list[str], list[str]]:
    kept = _without_tops(kept)
    tops = {parts[0] for _, parts in kept}
    if len(tops) > 1 and all(top.lower() in SPLITS for top in tops):
        raise SeveralSplitsError(
            f"the zip holds the splits {', '.join(sorted(tops))}; keep the one whose images the model was not trained "
            "on, and put one folder per class into it"
        )
    for member, parts in kept:
        if len(parts) != (1 if member.is_directory else 2):
            raise FolderLayoutError(
                f"{member.name!r} is not in a class folder; the zip must hold <class>/<file>.png or .jpg, all of them "
                "in one outer folder or split at most"
            )
    files = sorted(((m, parts) for m, parts in kept if not m.is_directory), key=lambda item: item[1])
    return [member for member, _ in files], [parts[0] for _, parts in files], sorted({parts[0] for _, parts in kept})


def _without_tops(kept: list[Placed]) -> list[Placed]:
    """Drop folders that hold everything else: `zip -r set.zip set/`, `data/train/<class>`."""
    while len({parts[0] for _, parts in kept}) == 1 and all(len(p) > 2 for m, p in kept if not m.is_directory):
        kept = [(member, parts[1:]) for member, parts in kept if len(parts) > 1]
    return kept


def _by_metadata(
    archive: zipfile.ZipFile, kept: list[Placed], tables: list[Placed]
) -> tuple[list[Member], list[str], list[str]] | None:
    """As the metadata says, or None where it says nothing of classes."""
    if len(tables) > 1:
        raise SeveralSplitsError("the zip holds several metadata files; keep one split, with its images")
    (table, parts) = tables[0]
    if table.unpacked_bytes > metadata.MAX_BYTES:
        raise CorruptDatasetError(f"{table.name!r} has more than {metadata.MAX_BYTES} bytes; keep file_name and label")
    labels = metadata.read_labels(_whole(archive, table), table.name)
    if labels is None:
        return None
    folder = "/".join(parts[:-1])
    files = sorted((member for member, _ in kept if not member.is_directory), key=lambda member: member.name)
    classes = []
    for member in files:
        name = member.name.removeprefix(f"{folder}/") if folder else member.name
        if name not in labels:
            raise FolderLayoutError(
                f"{member.name!r} is not in {table.name!r}; give every image a row, or leave it out"
            )
        classes.append(labels[name])
    return files, classes, sorted(set(classes))


def _refuse_other_files(member: Member, parts: list[str]) -> None:
    if member.is_directory:
        return
    if parts[-1].lower().endswith(_ARCHIVE_SUFFIXES):
        raise NestedArchiveError(f"{member.name!r} is an archive inside the archive; unpack it into class folders")
    if not parts[-1].lower().endswith(_IMAGE_SUFFIXES):
        raise FolderLayoutError(f"{member.name!r} is not a .png, .jpg or .jpeg file; leave it out of the zip")
    if member.unpacked_bytes > pictures.MAX_IMAGE_FILE_BYTES:
        limit = pictures.MAX_IMAGE_FILE_BYTES
        raise ImageTooLargeError(f"{member.name!r} has more than {limit} bytes; make the image smaller")


def _number(names: list[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    if len(names) > MAX_CLASSES:
        raise FolderLayoutError(f"the zip has {len(names)} classes; at most {MAX_CLASSES} are accepted")
    if not all(name.isascii() and name.isdecimal() and len(name) <= 9 for name in names):
        return {name: label for label, name in enumerate(names)}, tuple(names)
    label_of = {name: int(name) for name in names}
    largest = max(label_of.values())
    if len(set(label_of.values())) != len(names) or largest >= MAX_CLASSES:
        raise FolderLayoutError("class folders are numbers, but two are equal or one is too large; name them 0 to C-1")
    return label_of, tuple(str(label) for label in range(largest + 1))
