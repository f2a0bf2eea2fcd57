"""Decode one PNG or JPEG file within limits."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from worker.sanitizer.dataset.fitting import MAX_PIXELS
from worker.sanitizer.refusals import CorruptDatasetError, ImageDtypeError, ImageTooLargeError
from worker.sanitizer.spec import MAX_SIDE

MAX_IMAGE_FILE_BYTES = 32 * 2**20
# Of a progressive JPEG: cameras and encoders write ten. Each may take a few bytes and costs a pass over all pixels.
MAX_SCANS = 500
_JPEG_MAGIC = b"\xff\xd8"
_START_OF_SCAN = b"\xff\xda"

_GRAY_MODES = ("1", "L", "LA")
_COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_DEEP_MODES = ("I;16", "I;16L", "I;16B", "I")
_LARGEST_16 = 2**16 - 1
# All that Pillow's two readers and zlib raise on damaged bytes.
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
)
_BOMB_ERRORS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def decode(data: bytes, name: str, *, alpha: bool = False) -> Tensor:
    """Return uint8 CHW: one channel for a gray file, else three, and four for every file where `alpha` is wanted.

    A palette becomes its colours. Where alpha is not wanted it is dropped, not composed on a background. Of 16 bits
    the high 8 are kept, which is what Pillow does with 16-bit colour.

    Raises:
        DatasetRefusedError: image_too_large, wrong_image_dtype, corrupt_dataset.
    """
    if len(data) > MAX_IMAGE_FILE_BYTES:
        raise ImageTooLargeError(f"{name!r} has more than {MAX_IMAGE_FILE_BYTES} bytes; make the image smaller")
    if data.startswith(_JPEG_MAGIC) and data.count(_START_OF_SCAN) > MAX_SCANS:
        raise CorruptDatasetError(f"{name!r} has more than {MAX_SCANS} scans; save the JPEG again")
    try:
        return _decode(data, name, alpha=alpha)
    except _BOMB_ERRORS as error:
        raise ImageTooLargeError(f"{name!r} has far more than {MAX_PIXELS} pixels; make the image smaller") from error
    except _READER_ERRORS as error:
        raise CorruptDatasetError(f"{name!r} cannot be read as PNG or JPEG; save the image again") from error


def _decode(data: bytes, name: str, *, alpha: bool) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.simplefilter("ignore", UserWarning)
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            # Opening reads the header only: the limit is checked before any pixel is unpacked.
            if max(image.size) > MAX_SIDE or image.width * image.height > MAX_PIXELS:
                raise ImageTooLargeError(
                    f"{name!r} is {image.width}x{image.height} pixels; at most {MAX_PIXELS} pixels and "
                    f"{MAX_SIDE} a side are accepted"
                )
            if image.mode in _DEEP_MODES:
                deep_HW = np.asarray(image).astype(np.int64).clip(0, _LARGEST_16)
                pixels = (deep_HW >> 8).astype(np.uint8)
                if alpha:
                    pixels = np.array(Image.fromarray(pixels).convert("RGBA"), dtype=np.uint8)
            elif image.mode in _GRAY_MODES + _COLOUR_MODES:
                mode = "RGBA" if alpha else "L" if image.mode in _GRAY_MODES else "RGB"
                pixels = np.array(image.convert(mode), dtype=np.uint8)
            else:
                raise ImageDtypeError(f"{name!r} is of the unusual mode {image.mode!r}; save it as gray or RGB")
    pixels_HWC = pixels[:, :, None] if pixels.ndim == 2 else pixels
    return torch.from_numpy(np.ascontiguousarray(pixels_HWC.transpose(2, 0, 1)))
