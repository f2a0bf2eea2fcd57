"""Check a dataset against the model's input before any work starts."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from worker.sanitizer.dataset.naming import are_numbers
from worker.sanitizer.dataset.reading import LabelledImages
from worker.sanitizer.refusals import (
    LabelsMissingError,
    LabelsOutOfRangeError,
    NoImagesError,
    NonFinitePixelsError,
    PixelRangeError,
    SingleClassError,
    TooFewPerClassError,
    WrongChannelsError,
    WrongClassCountError,
    WrongSizeError,
)

# Below five, a class is missing from a part of the split or stands in it with one image.
MIN_PER_CLASS = 5
MAX_NAMED = 10


def check(
    data: LabelledImages,
    *,
    num_classes: int,
    in_channels: int,
    height: int,
    width: int,
    kind: Literal["clean", "triggered"],
) -> None:
    """Refuse a dataset that does not fit the model, in the order: empty, shape, pixels, labels, images per class.

    A triggered set needs no labels (where it has some, they are the true classes) and no minimum per class.

    Raises:
        DatasetRefusedError: empty_dataset, wrong_channels, wrong_image_size, non_finite_pixels, pixels_out_of_range,
            labels_missing, labels_out_of_range, wrong_class_count, single_class, too_few_per_class.
    """
    if data.images_NCHW.numel() == 0:
        raise NoImagesError("the dataset holds no image; upload at least five images per class")
    _check_shape(data.images_NCHW, (in_channels, height, width))
    _check_pixels(data.images_NCHW)
    if data.labels_N is None:
        if kind == "clean":
            raise LabelsMissingError("the clean set has no labels; add an array 'labels' with one class per image")
        return
    _check_labels(data, data.labels_N, num_classes)
    if kind == "clean":
        _check_counts(data.labels_N, num_classes, data.class_names)


def _check_shape(images_NCHW: Tensor, expected: tuple[int, int, int]) -> None:
    found = tuple(images_NCHW.shape[1:])
    if found == expected:
        return
    channels, height, width = expected
    hint = ""
    if found == (height, width, channels):
        hint = "; they are (N, H, W, C): transpose them with images.transpose(0, 3, 1, 2)"
    if found[0] != channels:
        raise WrongChannelsError(
            f"images have {found[0]} channels, the model takes {channels}{hint or '; convert the images'}"
        )
    raise WrongSizeError(
        f"images are {found[1]}x{found[2]} (height x width), the model takes {height}x{width}"
        f"{hint or '; declare input.resize and input.crop, or resize the images'}"
    )


def _check_pixels(images_NCHW: Tensor) -> None:
    if images_NCHW.dtype == torch.uint8:
        return
    low, high = torch.aminmax(images_NCHW)
    # NaN wins in aminmax, and an infinity is one of its ends.
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        raise NonFinitePixelsError("images hold NaN or infinity; remove those images")
    if float(low) < 0 or float(high) > 1:
        raise PixelRangeError(
            f"floating-point pixels must be in [0, 1], these are in [{float(low):.4g}, {float(high):.4g}]; "
            "do not normalise them (the model's mean and std do that), or save uint8 from 0 to 255"
        )


def _check_labels(data: LabelledImages, labels_N: Tensor, num_classes: int) -> None:
    low, high = int(labels_N.min()), int(labels_N.max())
    if low < 0 or high >= num_classes:
        raise LabelsOutOfRangeError(
            f"labels are {low} to {high}, the model has the classes 0 to {num_classes - 1}; "
            "correct the labels or the model's num_classes"
        )
    names = data.class_names
    if names is not None and not are_numbers(names) and len(names) != num_classes:
        raise WrongClassCountError(
            f"the data set names {len(names)} classes, the model has {num_classes}; add the missing folders (an empty "
            "one keeps its place), name the folders 0 to C-1, or declare architecture.class_names"
        )


def _check_counts(labels_N: Tensor, num_classes: int, names: tuple[str, ...] | None) -> None:
    counts_C = torch.bincount(labels_N, minlength=num_classes)
    if int((counts_C > 0).sum()) == 1:
        raise SingleClassError("all images of the clean set have one label; upload images of every class")
    few = [label for label, count in enumerate(counts_C.tolist()) if count < MIN_PER_CLASS]
    used = int(labels_N.max()) + 1
    if few and few[0] >= used:
        # Every label that occurs has its images: the likelier mistake is the declaration.
        missing = f"class {used}" if used + 1 == num_classes else f"each of the classes {used} to {num_classes - 1}"
        raise TooFewPerClassError(
            f"the clean set has the labels 0 to {used - 1}, and the model is declared with {num_classes} classes: if "
            f"it has {used}, correct architecture.num_classes; else add at least {MIN_PER_CLASS} images of {missing}",
            classes=tuple(few),
        )
    if few:
        described = ", ".join(
            (f"{label} ({names[label][:40]})" if names and label < len(names) else str(label))
            + f" has {int(counts_C[label])}"
            for label in few[:MAX_NAMED]
        )
        more = f" and {len(few) - MAX_NAMED} more classes" if len(few) > MAX_NAMED else ""
        raise TooFewPerClassError(
            f"every class of the clean set needs at least {MIN_PER_CLASS} images: class {described}{more}; "
            "add images of these classes",
            classes=tuple(few),
        )
