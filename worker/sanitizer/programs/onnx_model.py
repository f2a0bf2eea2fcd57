"""ONNX files: the network, its tensors, and the way to write the file again with only their bytes changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from worker.sanitizer.programs import onnx_file, onnx_import
from worker.sanitizer.programs.onnx_file import OnnxFile
from worker.sanitizer.programs.onnx_values import Origin, held
from worker.sanitizer.programs.program import Program
from worker.sanitizer.refusals import NoStateDictError

looks_like = onnx_file.looks_like


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """An ONNX file that passed every check.

    Attributes:
        file: Its nodes and tensors.
        tensors: Those that may change, by their names in the network, held as it holds them, in the file's dtypes.
        program: The graph, with float32 copies.
        origins: Where each of `tensors` lies in the file.
    """

    file: OnnxFile
    tensors: dict[str, Tensor]
    program: Program
    origins: dict[str, Origin]


def read(path: Path) -> OnnxModel:
    """Read an ONNX file.

    Raises:
        CheckpointRefusedError: its code names the rule.
    """
    file = onnx_file.read(path)
    imported = onnx_import.to_program(file)
    if not imported.origins:
        raise NoStateDictError("the ONNX file holds no weights that could be changed; export the network with its own")
    tensors = {name: held(file.tensors[origin.name].tensor, origin.layout) for name, origin in imported.origins.items()}
    return OnnxModel(file, tensors, imported.program, imported.origins)


def sized(source: OnnxModel, channels: int, height: int, width: int) -> Program:
    """The program for images of this size, where the file leaves it open; else the program as it is.

    Raises:
        CheckpointRefusedError: the graph does not take images of this size.
    """
    if None not in source.file.dims[1:]:
        return source.program
    return onnx_import.to_program(onnx_import.with_size(source.file, channels, height, width)).program


def write(file: BinaryIO, source: OnnxModel, changed: Mapping[str, Tensor], caps: Mapping[str, Tensor]) -> None:
    """Write the file again, with the bytes of these tensors in place of the old ones and every other byte as it was.

    `caps` are bounds of activations by the names of their values, for which nodes are added.
    """
    tensors = {source.origins[name].name: _in_file(source, name, changed[name]) for name in changed}
    onnx_file.write(file, source.file, tensors, caps)


def _in_file(source: OnnxModel, name: str, tensor: Tensor) -> Tensor:
    original = source.file.tensors[source.origins[name].name].tensor
    stored = tensor.t() if source.origins[name].layout == "transposed" else tensor
    assert stored.dtype is original.dtype, name

    return stored.reshape(original.shape).contiguous()
