"""Bring images to the model's size and channels, as far as the declaration says how.

N images, C channels, H height, W width. Images are uint8, or floating point as they were saved.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from worker.sanitizer.refusals import ColourImagesError, DatasetTooLargeError, ImageTooLargeError
from worker.sanitizer.spec import MAX_SIDE, InputSpec

MAX_PIXELS = 4 * 2**20
MAX_TOTAL_BYTES = 2 * 2**30
# ITU-R BT.601 luma in Pillow's fixed point (mode L of an RGB image), so that a byte becomes the byte it becomes there.
_LUMA_16 = (19595, 38470, 7471)
_CHUNK = 256


def fit_size(images_NCHW: Tensor, rule: InputSpec) -> Tensor:
    """Resize and crop by the declaration. What it does not cover is left as it is, for the checks to refuse.

    Sizes are rounded as torchvision rounds them: the longer side down, the crop's corner to the nearest pixel.

    Raises:
        DatasetRefusedError: image_too_large, dataset_too_large.
    """
    height, width = images_NCHW.shape[2:]
    if rule.resize == "stretch":
        images_NCHW = _resize(images_NCHW, rule.height, rule.width, rule.interpolation)
    elif rule.resize is not None and min(height, width) > 0:
        shorter = min(height, width)
        target = (rule.resize * height // shorter, rule.resize * width // shorter)
        if max(target) > MAX_SIDE or target[0] * target[1] > MAX_PIXELS:
            raise ImageTooLargeError(
                f"an image of {width}x{height} pixels would be {target[1]}x{target[0]} with a shorter side of "
                f"{rule.resize}; lower input.resize, or leave out images that are so long"
            )
        images_NCHW = _resize(images_NCHW, *target, rule.interpolation)
    if rule.crop == "center":
        height, width = images_NCHW.shape[2:]
        if height >= rule.height and width >= rule.width:
            top, left = round((height - rule.height) / 2), round((width - rule.width) / 2)
            images_NCHW = images_NCHW[:, :, top : top + rule.height, left : left + rule.width]
    return images_NCHW


def fit_channels(images_NCHW: Tensor, in_channels: int, *, grayscale: bool) -> Tensor:
    """Repeat gray for a model of three channels; take one of three equal channels for a model of one.

    Colour becomes gray only where `grayscale` was declared. Any other difference is left for the checks to refuse.

    Raises:
        DatasetRefusedError: colour_images.
    """
    found = images_NCHW.shape[1]
    if found == 1 and in_channels == 3:
        return images_NCHW.expand(-1, 3, -1, -1)
    if found == 3 and in_channels == 1:
        first_N1HW = images_NCHW[:, :1]
        if bool((images_NCHW == first_N1HW).all()):
            return first_N1HW
        if not grayscale:
            raise ColourImagesError(
                "the images are in colour and the model takes one channel: declare input.grayscale if it was trained "
                "on colour images turned gray, or send gray images"
            )
        return _luma(images_NCHW)
    return images_NCHW


def _luma(images_NCHW: Tensor) -> Tensor:
    weights_C = torch.tensor(_LUMA_16)
    if images_NCHW.dtype == torch.uint8:
        parts = [
            ((chunk.to(torch.int32) * weights_C.view(1, 3, 1, 1)).sum(dim=1, keepdim=True) + 0x8000) >> 16
            for chunk in _chunks(images_NCHW)
        ]
        return torch.cat(parts).to(torch.uint8)
    return (images_NCHW * (weights_C / 2**16).to(images_NCHW.dtype).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


def _chunks(images_NCHW: Tensor) -> Iterator[Tensor]:
    for start in range(0, len(images_NCHW), _CHUNK):
        yield images_NCHW[start : start + _CHUNK]


def _resize(images_NCHW: Tensor, height: int, width: int, interpolation: str) -> Tensor:
    if images_NCHW.shape[2:] == (height, width) or images_NCHW.numel() == 0:
        return images_NCHW
    num_bytes = images_NCHW.shape[0] * images_NCHW.shape[1] * height * width * images_NCHW.element_size()
    if num_bytes > MAX_TOTAL_BYTES:
        raise DatasetTooLargeError(
            f"{len(images_NCHW)} images of {width}x{height} pixels are more than {MAX_TOTAL_BYTES} bytes; upload fewer"
        )
    parts = []
    for chunk in _chunks(images_NCHW):
        resized = F.interpolate(chunk, size=(height, width), mode=interpolation, antialias=True)
        if chunk.dtype != torch.uint8:
            # Bicubic overshoots at edges. Within what the image held, so that a wrong range is still seen as one.
            resized = resized.clamp(*torch.aminmax(chunk))
        parts.append(resized)
    return torch.cat(parts)
