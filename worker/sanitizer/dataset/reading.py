"""Read an uploaded dataset: npz, safetensors, Parquet, or a zip with one folder of PNG or JPEG files per class.

N images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from worker.sanitizer import archives, safetensors_file
from worker.sanitizer.archives import Member
from worker.sanitizer.dataset import arrays, folders, naming, parquet, parquet_pages
from worker.sanitizer.dataset.fitting import fit_channels, fit_size
from worker.sanitizer.dataset.stacking import Stack
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
from worker.sanitizer.spec import InputSpec

MAX_UNPACKED_BYTES = 2 * 2**30
# Labels in order and black images compress a thousandfold, so the ratio is judged only where it could hurt.
MAX_RATIO = 200
RATIO_FREE_BYTES = 64 * 2**20

_FIRST_BYTES = 16
_CHANNELS = (1, 3, 4)
_ALPHA_CHANNELS = 4

Format = Literal["npz", "safetensors", "image_folders", "parquet"]


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """What an upload holds. Images are uint8 (0 to 255) or float32.

    Attributes:
        images_NCHW: The images, fitted where a rule was given.
        labels_N: Labels, in the model's class order where its class names were given.
        class_names: Names in label order, where the upload or the model has any.
        format: What the upload is.
        sizes: How many images the upload has of each (height, width), before any fitting.
        num_left_out: How many of them are not among `images_NCHW`, because they do not have the model's size.
    """

    images_NCHW: Tensor
    labels_N: Tensor | None
    class_names: tuple[str, ...] | None
    format: Format
    sizes: Mapping[tuple[int, int], int] = field(default_factory=dict)
    num_left_out: int = 0


def read(
    path: Path,
    *,
    in_channels: int | None = None,
    rule: InputSpec | None = None,
    class_names: tuple[str, ...] = (),
    leave_out_wrong_sizes: bool = False,
) -> LabelledImages:
    """Read a dataset by its first bytes.

    Args:
        path: The uploaded file.
        in_channels: What the model takes. Gray is repeated for three channels; colour becomes gray only if it is gray
            already, or the rule says so; PNG files give their alpha to a model of four channels and else lose it.
            Without it files become gray if all of them are gray, else RGB.
        rule: How images are resized, cropped and turned gray.
        class_names: The model's classes in its order; a set whose classes have names is matched by them.
        leave_out_wrong_sizes: Count images that do not have the rule's size instead of refusing them.

    Raises:
        DatasetRefusedError: the file is not accepted; the code says by which rule.
    """
    try:
        found = _read(path, in_channels, rule, leave_out=leave_out_wrong_sizes)
    except OSError as error:
        raise UnreadableUploadError("the uploaded file cannot be read on the worker; try again") from error
    if not class_names or found.class_names is None or found.labels_N is None:
        return found
    labels_N = naming.to_model_order(found.labels_N, found.class_names, class_names)
    return replace(found, labels_N=labels_N, class_names=class_names)


def pixels(images_NCHW: Tensor) -> Tensor:
    """Return float32 pixels in [0, 1]: uint8 divided by 255, floating point as it is."""
    if images_NCHW.dtype == torch.uint8:
        return images_NCHW.to(torch.float32) / 255
    return images_NCHW.to(torch.float32)


def _read(path: Path, in_channels: int | None, rule: InputSpec | None, *, leave_out: bool) -> LabelledImages:
    with path.open("rb") as file:
        first_bytes = file.read(_FIRST_BYTES)
        members = archives.read_directory(file, path.stat().st_size) if first_bytes.startswith(archives.MAGIC) else None
    if members is not None:
        _refuse_bombs(members)
        if any("/" not in member.name and member.name.endswith(".npy") for member in members):
            return _fitted(_read_npz(path, members), in_channels, rule, leave_out=leave_out)
        return _read_pictures(path, members, in_channels, rule, leave_out=leave_out)
    if safetensors_file.looks_like(first_bytes):
        found = safetensors_file.read(path).tensors
        labelled = _labelled(found.get("images"), found.get("labels"), sorted(found), "safetensors")
        return _fitted(labelled, in_channels, rule, leave_out=leave_out)
    if first_bytes.startswith(parquet_pages.MAGIC):
        return _read_pictures(path, None, in_channels, rule, leave_out=leave_out)
    if not first_bytes:
        raise EmptyUploadError("the file is empty; upload the dataset again")
    if first_bytes.startswith(arrays.MAGIC):
        raise UnknownDatasetFormatError(
            "this is a single .npy array; save both with numpy.savez(path, images=..., labels=...)"
        )
    raise UnknownDatasetFormatError(
        "this is neither npz, safetensors, Parquet nor a zip of class folders; "
        "save it with numpy.savez(path, images=..., labels=...)"
    )


def _read_pictures(
    path: Path, members: list[Member] | None, in_channels: int | None, rule: InputSpec | None, *, leave_out: bool
) -> LabelledImages:
    """PNG and JPEG files, in folders or in Parquet."""
    files = [m for m in members or () if not m.is_directory and not folders.is_extra(m.name.split("/"))]
    shards = [member for member in files if member.name.endswith(parquet.SUFFIX)]
    stack = Stack(in_channels, rule, leave_out=leave_out, num_expected=len(files) - len(shards) if members else 1)
    alpha = in_channels == _ALPHA_CHANNELS
    labels_N: Tensor | None
    names: tuple[str, ...] | None
    if members is None:
        labels_N, names = parquet.read(path, stack, alpha=alpha)
        kind: Format = "parquet"
    elif shards and len(shards) == len(files):
        labels_N, names = parquet.read_shards(path, members, stack, alpha=alpha)
        kind = "parquet"
    else:
        labels_N, names = folders.read(path, members, stack, alpha=alpha)
        kind = "image_folders"
    if labels_N is not None:
        labels_N = labels_N[torch.tensor(stack.kept, dtype=torch.bool)]
    return LabelledImages(stack.images(), labels_N, names, kind, stack.sizes, stack.kept.count(False))


def _fitted(
    found: LabelledImages, in_channels: int | None, rule: InputSpec | None, *, leave_out: bool
) -> LabelledImages:
    """The same for arrays, whose images are all of one size."""
    images_NCHW, labels_N = found.images_NCHW, found.labels_N
    num_images, _, height, width = images_NCHW.shape
    num_left_out = 0
    if rule is not None:
        images_NCHW = fit_size(images_NCHW, rule)
        if leave_out and images_NCHW.shape[2:] != (rule.height, rule.width):
            num_left_out = num_images
            images_NCHW, labels_N = images_NCHW[:0], None if labels_N is None else labels_N[:0]
    if in_channels is not None:
        images_NCHW = fit_channels(images_NCHW, in_channels, grayscale=rule is not None and rule.grayscale)
    return replace(
        found, images_NCHW=images_NCHW, labels_N=labels_N, sizes={(height, width): num_images},
        num_left_out=num_left_out,
    )  # fmt: skip


def _read_npz(path: Path, members: list[Member]) -> LabelledImages:
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
