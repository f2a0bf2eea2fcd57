"""Read an uploaded dataset: npz, safetensors, or a zip with one folder of PNG or JPEG files per class.

N images, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from worker.sanitizer import archives, safetensors_file
from worker.sanitizer.archives import Member
from worker.sanitizer.dataset import arrays, folders
from worker.sanitizer.refusals import (
    AmbiguousLayoutError,
    ArchiveTooLargeError,
    DatasetTooLargeError,
    EmptyUploadError,
    ImageDtypeError,
    ImageShapeError,
    LabelArrayError,
    MissingArrayError,
    UnknownDatasetFormatError,
    UnreadableUploadError,
)

MAX_UNPACKED_BYTES = 2 * 2**30
# Labels in order and black images compress a thousandfold, so the ratio is judged only where it could hurt.
MAX_RATIO = 200
RATIO_FREE_BYTES = 64 * 2**20

_FIRST_BYTES = 16
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """What an upload holds. Images are uint8 (0 to 255) or float32; `class_names` are folder names in label order."""

    images_NCHW: Tensor
    labels_N: Tensor | None
    class_names: tuple[str, ...] | None
    format: Literal["npz", "safetensors", "image_folders"]


def read(path: Path, *, in_channels: int | None = None) -> LabelledImages:
    """Read a dataset by its first bytes.

    Args:
        path: The uploaded file.
        in_channels: What PNG and JPEG files are converted to: 1 gray, 3 RGB, 4 RGBA. Without it they become gray if
            all of them are gray, else RGB. Arrays are never converted.

    Raises:
        DatasetRefusedError: the file is not accepted; the code says by which rule.
    """
    try:
        return _read(path, in_channels)
    except OSError as error:
        raise UnreadableUploadError("the uploaded file cannot be read on the worker; try again") from error


def pixels(images_NCHW: Tensor) -> Tensor:
    """Return float32 pixels in [0, 1]: uint8 divided by 255, floating point as it is."""
    if images_NCHW.dtype == torch.uint8:
        return images_NCHW.to(torch.float32) / 255
    return images_NCHW.to(torch.float32)


def _read(path: Path, in_channels: int | None) -> LabelledImages:
    with path.open("rb") as file:
        first_bytes = file.read(_FIRST_BYTES)
        if first_bytes.startswith(archives.MAGIC):
            members = archives.read_directory(file, path.stat().st_size)
            if any("/" not in member.name and member.name.endswith(".npy") for member in members):
                return _read_npz(path, members)
            _refuse_bombs(members)
            images_NCHW, labels_N, names = folders.read(path, members, in_channels)
            return LabelledImages(images_NCHW, labels_N, names, "image_folders")
    if safetensors_file.looks_like(first_bytes):
        found = safetensors_file.read(path).tensors
        return _labelled(found.get("images"), found.get("labels"), sorted(found), "safetensors")
    if not first_bytes:
        raise EmptyUploadError("the file is empty; upload the dataset again")
    if first_bytes.startswith(arrays.MAGIC):
        raise UnknownDatasetFormatError(
            "this is a single .npy array; save both with numpy.savez(path, images=..., labels=...)"
        )
    raise UnknownDatasetFormatError(
        "this is neither npz, safetensors nor a zip of class folders; "
        "save it with numpy.savez(path, images=..., labels=...)"
    )


def _read_npz(path: Path, members: list[Member]) -> LabelledImages:
    _refuse_bombs(members)
    found = {member.name.removesuffix(".npy"): member for member in members}
    read_arrays = {
        name: torch.from_numpy(arrays.read(path, found[name])) for name in ("images", "labels") if name in found
    }
    return _labelled(read_arrays.get("images"), read_arrays.get("labels"), sorted(found), "npz")


def _refuse_bombs(members: list[Member]) -> None:
    try:
        archives.refuse_bombs(members, max_bytes=MAX_UNPACKED_BYTES, max_ratio=MAX_RATIO, free_bytes=RATIO_FREE_BYTES)
    except ArchiveTooLargeError as error:
        raise DatasetTooLargeError(error.message) from error


def _labelled(
    images: Tensor | None, labels: Tensor | None, names: list[str], kind: Literal["npz", "safetensors"]
) -> LabelledImages:
    if images is None:
        raise MissingArrayError(
            f"the file holds no array named 'images' (found: {', '.join(name[:40] for name in names[:5]) or 'none'}); "
            "name the arrays 'images' and 'labels'"
        )
    images_NCHW = _as_nchw(_as_pixels(images))
    labels_N = None if labels is None else _as_labels(labels, len(images_NCHW))
    return LabelledImages(images_NCHW, labels_N, None, kind)


def _as_pixels(images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        return images
    if not images.dtype.is_floating_point:
        raise ImageDtypeError(
            f"images have dtype {str(images.dtype).removeprefix('torch.')}; "
            "save them as uint8 (0 to 255) or as floating point in [0, 1]"
        )
    return images.to(torch.float32)


def _as_nchw(images: Tensor) -> Tensor:
    """Bring (N, H, W), (N, C, H, W) or an unmistakable (N, H, W, C) into NCHW."""
    if images.dim() == 3:
        return images.unsqueeze(1)
    if images.dim() != 4:
        raise ImageShapeError(
            f"images have shape {tuple(images.shape)[:8]}; save them as (N, C, H, W), or (N, H, W) for one channel"
        )
    first, last = images.shape[1] in _CHANNELS, images.shape[3] in _CHANNELS
    if first and last:
        raise AmbiguousLayoutError(
            f"images of shape {tuple(images.shape)} can be (N, C, H, W) or (N, H, W, C); "
            "upload a zip of class folders with PNG files, where this cannot be mistaken"
        )
    return images.permute(0, 3, 1, 2).contiguous() if last else images


def _as_labels(labels: Tensor, num_images: int) -> Tensor:
    if labels.dtype.is_floating_point or labels.dtype == torch.bool or labels.dtype.is_complex:
        raise LabelArrayError(
            f"labels have dtype {str(labels.dtype).removeprefix('torch.')}; save one integer class per image"
        )
    if labels.dim() != 1 or len(labels) != num_images:
        raise LabelArrayError(
            f"labels have shape {tuple(labels.shape)[:8]} for {num_images} images; save one integer class per image, "
            "not one-hot rows"
        )
    if labels.dtype == torch.uint64 and bool((labels.view(torch.int64) < 0).any()):
        raise LabelArrayError(f"labels reach beyond {np.iinfo(np.int64).max}; save one integer class per image")
    return labels.to(torch.int64)
