"""Stand-ins for the numpy arrays and numbers beside a state dict (BackdoorBench's attack_result.pt holds some).

numpy's own unpickling functions trust their input, so none of them runs: the loader is given these in their place. They
accept plain numeric arrays only, and pickle as the arrays that they stand for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

_DTYPES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
NUMBERS = (np.number, np.bool_)


class DtypeRecord:
    """Stands for numpy.dtype."""

    def __init__(self, name: str, *_: object) -> None:
        if name not in _DTYPES:
            raise ValueError("an array of another kind than numbers")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple[object, ...]) -> None:
        if len(state) < 2 or state[1] not in ("<", "|"):
            raise ValueError("an array of another byte order")


class ArrayRecord:
    """Stands for numpy.ndarray; `array` is empty until the pickle has given the state."""

    def __init__(self) -> None:
        self.array: npt.NDArray[Any] = np.empty(0)

    def __setstate__(self, state: tuple[object, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        if not isinstance(dtype, DtypeRecord) or not isinstance(shape, tuple) or not isinstance(data, bytes):
            raise TypeError("not the state of an array of numbers")
        flat = np.frombuffer(data, dtype=dtype.dtype)
        self.array = flat.reshape(shape, order="F" if is_fortran else "C").copy(order="K")

    def __reduce__(self) -> Any:  # noqa: ANN401 - what pickle prescribes
        return self.array.__reduce__()


def _start_array(*_: object) -> ArrayRecord:
    return ArrayRecord()


def _number(dtype: DtypeRecord, data: bytes) -> object:
    if not isinstance(dtype, DtypeRecord) or not isinstance(data, bytes) or len(data) != dtype.dtype.itemsize:
        raise TypeError("not the state of a number")
    return np.frombuffer(data, dtype=dtype.dtype)[0]


STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_start_array, "numpy.core.multiarray._reconstruct"),
    (_start_array, "numpy._core.multiarray._reconstruct"),
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
    (ArrayRecord, "numpy.ndarray"),
    (DtypeRecord, "numpy.dtype"),
]
