"""A zip with one folder of PNG or JPEG files per class: names first, then one image after the other."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from worker.sanitizer.archives import Member
from worker.sanitizer.refusals import (
    CorruptDatasetError,
    DatasetTooLargeError,
    FolderLayoutError,
    ImageDtypeError,
    ImageSizesDifferError,
    ImageTooLargeError,
    NestedArchiveError,
    NoImagesError,
)
from worker.sanitizer.spec import MAX_CLASSES, MAX_SIDE

MAX_IMAGE_FILE_BYTES = 32 * 2**20
MAX_PIXELS = 4 * 2**20
MAX_TOTAL_BYTES = 2 * 2**30

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_ARCHIVE_SUFFIXES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst")
_SYSTEM_FILES = (".DS_Store", "Thumbs.db", "desktop.ini")
_SYSTEM_FOLDER = "__MACOSX"
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_GRAY_MODES = ("1", "L", "LA")
_COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
# All that Pillow's two readers, zipfile and zlib raise on damaged bytes.
_READER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    EOFError,
    RuntimeError,
    NotImplementedError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)
_BOMB_ERRORS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def read(path: Path, members: list[Member], in_channels: int | None) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Return uint8 images NCHW, labels N and the class names in label order.

    Folders that are all numbers are labels themselves; else labels count the folders in sorted order, empty ones too.

    Raises:
        DatasetRefusedError: wrong_folder_layout, nested_archive, image_too_large, image_sizes_differ,
            wrong_image_dtype, empty_dataset, dataset_too_large, corrupt_dataset.
    """
    files, labels, names = _arrange(members)
    images = _decode_all(path, files, in_channels)
    # Gray files among colour files become three equal channels.
    channels = max(image.shape[2] for image in images)
    height, width = images[0].shape[:2]
    images_NCHW = np.empty((len(images), channels, height, width), dtype=np.uint8)
    for index, image in enumerate(images):
        images_NCHW[index] = image.transpose(2, 0, 1)
    return torch.from_numpy(images_NCHW), torch.tensor(labels, dtype=torch.int64), names


def _arrange(members: list[Member]) -> tuple[list[Member], list[int], tuple[str, ...]]:
    """Find the class of every image file from the names alone."""
    kept = [(member, member.name.rstrip("/").split("/")) for member in members]
    kept = [(member, parts) for member, parts in kept if not _is_system(parts)]
    if not any(not member.is_directory for member, _ in kept):
        raise NoImagesError("the zip holds no image; put one folder of PNG or JPEG files per class into it")
    tops = {parts[0] for _, parts in kept}
    # `zip -r set.zip set/` puts everything below one folder; it is one only if it has no images of its own.
    if len(tops) == 1 and all(len(parts) > 2 for member, parts in kept if not member.is_directory):
        kept = [(member, parts[1:]) for member, parts in kept if len(parts) > 1]
    for member, parts in kept:
        _refuse_misplaced(member, parts)
    folders = sorted({parts[0] for _, parts in kept})
    label_of, names = _number(folders)
    files = sorted(((m, parts) for m, parts in kept if not m.is_directory), key=lambda item: item[1])
    return [member for member, _ in files], [label_of[parts[0]] for _, parts in files], names


def _is_system(parts: list[str]) -> bool:
    return _SYSTEM_FOLDER in parts or parts[-1] in _SYSTEM_FILES or parts[-1].startswith("._")


def _refuse_misplaced(member: Member, parts: list[str]) -> None:
    depth = 1 if member.is_directory else 2
    if not member.is_directory and parts[-1].lower().endswith(_ARCHIVE_SUFFIXES):
        raise NestedArchiveError(f"{member.name!r} is an archive inside the archive; unpack it into class folders")
    if len(parts) != depth:
        raise FolderLayoutError(
            f"{member.name!r} is not in a class folder; the zip must hold <class>/<file>.png or .jpg and nothing else"
        )
    if not member.is_directory and not parts[-1].lower().endswith(_IMAGE_SUFFIXES):
        raise FolderLayoutError(f"{member.name!r} is not a .png, .jpg or .jpeg file; leave it out of the zip")
    if member.unpacked_bytes > MAX_IMAGE_FILE_BYTES:
        raise ImageTooLargeError(f"{member.name!r} has more than {MAX_IMAGE_FILE_BYTES} bytes; make the image smaller")


def _number(folders: list[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    if not all(folder.isascii() and folder.isdecimal() and len(folder) <= 9 for folder in folders):
        return {folder: label for label, folder in enumerate(folders)}, tuple(folders)
    label_of = {folder: int(folder) for folder in folders}
    largest = max(label_of.values())
    if len(set(label_of.values())) != len(folders) or largest >= MAX_CLASSES:
        raise FolderLayoutError("class folders are numbers, but two are equal or one is too large; name them 0 to C-1")
    return label_of, tuple(str(label) for label in range(largest + 1))


def _decode_all(path: Path, files: list[Member], in_channels: int | None) -> list[npt.NDArray[np.uint8]]:
    images: list[npt.NDArray[np.uint8]] = []
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise CorruptDatasetError("the zip file cannot be opened; write it again") from error
    with archive:
        for member in files:
            try:
                image = _decode(archive, member, in_channels)
            except _BOMB_ERRORS as error:
                raise ImageTooLargeError(
                    f"{member.name!r} has far more than {MAX_PIXELS} pixels; make the image smaller"
                ) from error
            except _READER_ERRORS as error:
                raise CorruptDatasetError(
                    f"{member.name!r} cannot be read as PNG or JPEG; save the image again"
                ) from error
            if images and image.shape[:2] != images[0].shape[:2]:
                raise ImageSizesDifferError(
                    f"{member.name!r} is {image.shape[1]}x{image.shape[0]} pixels, the first image is "
                    f"{images[0].shape[1]}x{images[0].shape[0]}; resize all to the model's input size"
                )
            if image.nbytes * len(files) > MAX_TOTAL_BYTES:
                raise DatasetTooLargeError(
                    f"{len(files)} images of this size are more than {MAX_TOTAL_BYTES} bytes; upload fewer images"
                )
            images.append(image)
    return images


def _decode(archive: zipfile.ZipFile, member: Member, in_channels: int | None) -> npt.NDArray[np.uint8]:
    """Return one image HWC."""
    with archive.open(member.name) as file:
        # One byte more than declared would mean that the directory lies.
        data = file.read(member.unpacked_bytes + 1)
    if len(data) != member.unpacked_bytes:
        raise CorruptDatasetError(f"{member.name!r} is not of its declared length; write the zip again")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.simplefilter("ignore", UserWarning)
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            # Opening reads the header only: the limit is checked before any pixel is unpacked.
            if max(image.size) > MAX_SIDE or image.width * image.height > MAX_PIXELS:
                raise ImageTooLargeError(
                    f"{member.name!r} is {image.width}x{image.height} pixels; at most {MAX_PIXELS} pixels and "
                    f"{MAX_SIDE} a side are accepted"
                )
            if image.mode not in _GRAY_MODES + _COLOUR_MODES:
                raise ImageDtypeError(f"{member.name!r} has more than 8 bits per channel; save it with 8 bits")
            mode = _MODES.get(in_channels or 0, "L" if image.mode in _GRAY_MODES else "RGB")
            # Transparency is dropped where the model has no channel for it.
            pixels_HWC = np.array(image.convert(mode), dtype=np.uint8)
    return pixels_HWC[:, :, None] if pixels_HWC.ndim == 2 else pixels_HWC
