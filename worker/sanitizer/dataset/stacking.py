"""Images that come one by one, brought to one size within a limit of bytes."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from worker.sanitizer.dataset.fitting import MAX_TOTAL_BYTES, fit_channels, fit_size
from worker.sanitizer.refusals import DatasetTooLargeError, ImageSizesDifferError
from worker.sanitizer.spec import InputSpec


class Stack:
    """Takes uint8 images CHW, and gives them as one tensor NCHW.

    Args:
        in_channels: What the model takes; None leaves channels as they are.
        rule: How images are fitted; None leaves sizes as they are.
        leave_out: Count an image that does not have the model's size after fitting instead of refusing it.
        num_expected: How many images will come at most; lets a too large set be refused by its first image.
    """

    def __init__(
        self, in_channels: int | None, rule: InputSpec | None, *, leave_out: bool = False, num_expected: int = 1
    ) -> None:
        self._in_channels = in_channels
        self._rule = rule
        self._leave_out = leave_out
        self._num_expected = num_expected
        self._images: list[Tensor] = []
        self._num_bytes = 0
        self.kept: list[bool] = []
        self.sizes: Counter[tuple[int, int]] = Counter()

    def add(self, image_CHW: Tensor, name: str) -> None:
        """Take one image.

        Raises:
            DatasetRefusedError: image_too_large, colour_images, image_sizes_differ, dataset_too_large.
        """
        images_1CHW = image_CHW[None]
        self.sizes[image_CHW.shape[1], image_CHW.shape[2]] += 1
        if self._rule is not None:
            images_1CHW = fit_size(images_1CHW, self._rule)
        if self._in_channels is not None:
            grayscale = self._rule is not None and self._rule.grayscale
            images_1CHW = fit_channels(images_1CHW, self._in_channels, grayscale=grayscale)
        image = images_1CHW[0]
        fits = not self._leave_out or self._rule is None or image.shape[1:] == (self._rule.height, self._rule.width)
        self.kept.append(fits)
        if not fits:
            return
        first = self._images[0] if self._images else image
        if image.shape[1:] != first.shape[1:]:
            raise ImageSizesDifferError(
                f"{name!r} is {image.shape[2]}x{image.shape[1]} pixels, the first image is "
                f"{first.shape[2]}x{first.shape[1]}; resize all to the model's input size, or declare input.resize "
                "and input.crop"
            )
        self._num_bytes += image.numel()
        if max(self._num_bytes, image.numel() * self._num_expected) > MAX_TOTAL_BYTES:
            raise DatasetTooLargeError(
                f"{max(self._num_expected, len(self.kept))} images of this size are more than {MAX_TOTAL_BYTES} "
                "bytes; upload fewer images"
            )
        # A crop is a view of the whole image, which would stay in memory with it.
        self._images.append(image.contiguous().clone() if image.untyped_storage().nbytes() > image.numel() else image)

    def images(self) -> Tensor:
        """All that were kept, NCHW; gray among colour becomes three equal channels."""
        if not self._images:
            return torch.empty((0, 1, 1, 1), dtype=torch.uint8)
        channels = max(len(image) for image in self._images)
        images_NCHW = torch.empty((len(self._images), channels, *self._images[0].shape[1:]), dtype=torch.uint8)
        for index, image in enumerate(self._images):
            images_NCHW[index] = image
        return images_NCHW
