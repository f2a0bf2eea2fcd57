"""One .npy member of an .npz archive, its header read by numpy's own safe reader and its data within declared sizes."""

from __future__ import annotations

import math
import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from worker.sanitizer.archives import Member
from worker.sanitizer.refusals import CorruptDatasetError, ObjectArrayError, UnsupportedDtypeError

MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 10_000
_CHUNK_BYTES = 2**20
# All that zipfile, zlib and numpy's header reader raise on damaged bytes.
_READER_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    OverflowError,
    MemoryError,
    RecursionError,
    tokenize.TokenError,
    UserWarning,
)


def read(path: Path, member: Member) -> npt.NDArray[np.generic]:
    """Read the array of a member whose sizes `archives.read_directory` has checked.

    Raises:
        DatasetRefusedError: object_array, unsupported_dtype, corrupt_dataset.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member.name) as file, warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            return _read(file, member)
    except _READER_ERRORS as error:
        raise CorruptDatasetError(f"{member.name!r} cannot be read; save it again with numpy.savez") from error


def _read(file: IO[bytes], member: Member) -> npt.NDArray[np.generic]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=MAX_HEADER_BYTES)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file, max_header_size=MAX_HEADER_BYTES)
    else:
        raise CorruptDatasetError(f"{member.name!r} has an unknown .npy version; save it again with numpy.savez")
    if dtype.hasobject:
        raise ObjectArrayError(
            f"{member.name!r} holds Python objects, which only a pickle can store; save an array of numbers "
            "(images of one size, integer labels)"
        )
    if dtype.kind not in "uifb" or dtype.itemsize > 8:
        raise UnsupportedDtypeError(
            f"{member.name!r} has dtype {str(dtype)[:40]}; save uint8, floating or integer numbers"
        )
    if any(extent < 0 for extent in shape) or len(shape) > 8:
        raise CorruptDatasetError(f"{member.name!r} has an impossible shape; save it again with numpy.savez")
    declared = math.prod(shape) * dtype.itemsize
    if declared != member.unpacked_bytes - file.tell():
        raise CorruptDatasetError(f"shape and bytes of {member.name!r} do not agree; save it again with numpy.savez")
    # A zero-size array may still declare an extent of 2^62, which numpy would refuse later in other words.
    if declared == 0 and any(extent > 2**31 for extent in shape):
        raise CorruptDatasetError(f"{member.name!r} has an impossible shape; save it again with numpy.savez")
    flat = np.empty(declared, dtype=np.uint8)
    _fill(file, flat.data, member)
    array = flat.view(dtype).reshape(shape[::-1] if fortran else shape)
    array = array.transpose() if fortran else array
    return np.ascontiguousarray(array, dtype=dtype.newbyteorder("="))


def _fill(file: IO[bytes], target: memoryview, member: Member) -> None:
    filled = 0
    while filled < len(target):
        chunk = file.read(min(_CHUNK_BYTES, len(target) - filled))
        if not chunk:
            raise CorruptDatasetError(f"{member.name!r} ends too early; upload the whole file again")
        target[filled : filled + len(chunk)] = chunk
        filled += len(chunk)
    # One more read makes zipfile compare the checksum, and shows data beyond what was declared.
    if file.read(1):
        raise CorruptDatasetError(f"{member.name!r} is longer than it declares; upload the file again")
