"""Tensors of an ONNX file: views of its bytes where the values are packed there, copies where protobuf holds them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor

from worker.sanitizer.programs.onnx_wire import Span
from worker.sanitizer.refusals import CorruptOnnxError, UnsupportedDtypeError
from worker.sanitizer.safetensors_file import refuse_absurd

_Proto = onnx.TensorProto
DTYPES: dict[int, torch.dtype] = {
    _Proto.FLOAT: torch.float32,
    _Proto.FLOAT16: torch.float16,
    _Proto.BFLOAT16: torch.bfloat16,
    _Proto.DOUBLE: torch.float64,
    _Proto.INT8: torch.int8,
    _Proto.INT16: torch.int16,
    _Proto.INT32: torch.int32,
    _Proto.INT64: torch.int64,
    _Proto.UINT8: torch.uint8,
    _Proto.BOOL: torch.bool,
}
FLOATING = frozenset(code for code, dtype in DTYPES.items() if dtype.is_floating_point)
_PACKED_DTYPES = {4: torch.float32, 10: torch.float64}


@dataclass(frozen=True, slots=True)
class FileTensor:
    """A tensor of the file; `start` is its first byte there, None where its bytes cannot be overwritten."""

    tensor: Tensor
    start: int | None


def read(data: memoryview, proto: onnx.TensorProto, span: Span | None) -> FileTensor:
    """Read one tensor, of which the values lie at the span or, without one, in the message."""
    name, shape = proto.name or "a constant", tuple(proto.dims)
    dtype = DTYPES.get(proto.data_type)
    if dtype is None:
        raise UnsupportedDtypeError(
            f"{name[:80]!r} has the ONNX data type {proto.data_type}; export the network in float32, not quantised"
        )
    if any(size < 0 for size in shape):
        raise CorruptOnnxError(f"{name[:80]!r} has a negative extent; export the network again")
    refuse_absurd(name, shape)
    count = math.prod(shape)
    if span is None:
        return FileTensor(_typed(name, proto, dtype, count).reshape(shape), None)
    if span.number in _PACKED_DTYPES and dtype is not _PACKED_DTYPES[span.number]:
        raise CorruptOnnxError(f"{name[:80]!r} has values of another type than it declares; export it again")
    if span.stop - span.start != count * dtype.itemsize:
        raise CorruptOnnxError(f"shape and bytes of {name[:80]!r} do not agree; export the network again")
    tensor = _view(data, span.start, dtype, count).reshape(shape)
    return FileTensor(tensor, patchable(span, tensor))


def patchable(span: Span | None, tensor: Tensor) -> int | None:
    """Where a tensor starts in the file, if its bytes can be overwritten."""
    return None if span is None or not tensor.is_floating_point() else span.start


def _view(data: memoryview, start: int, dtype: torch.dtype, count: int) -> Tensor:
    if count == 0:
        return torch.empty(0, dtype=dtype)
    if dtype is torch.bool:
        return torch.frombuffer(data, dtype=torch.uint8, count=count, offset=start) != 0
    if start % dtype.itemsize:
        # Protobuf does not align; arithmetic on such memory is undefined, so this tensor is copied.
        return torch.frombuffer(bytearray(data[start : start + count * dtype.itemsize]), dtype=dtype)
    return torch.frombuffer(data, dtype=dtype, count=count, offset=start)


def _typed(name: str, proto: onnx.TensorProto, dtype: torch.dtype, count: int) -> Tensor:
    """The values of a tensor that are kept as numbers of the protobuf message."""
    if dtype in {torch.float32, torch.float64}:
        values = proto.float_data if dtype is torch.float32 else proto.double_data
    else:
        values = proto.int64_data if dtype is torch.int64 else proto.int32_data
    if len(values) != count:
        raise CorruptOnnxError(f"shape and values of {name[:80]!r} do not agree; export the network again")
    if dtype in {torch.float16, torch.bfloat16}:
        # Kept as the bits of each number.
        return torch.tensor([value & 0xFFFF for value in values], dtype=torch.int32).to(torch.int16).view(dtype)
    try:
        return torch.tensor(list(values), dtype=dtype)
    except (RuntimeError, OverflowError) as error:
        raise CorruptOnnxError(f"a value of {name[:80]!r} does not fit its type; export the network again") from error
