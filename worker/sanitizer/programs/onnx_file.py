"""An ONNX file that passed every check: its nodes, its tensors where they lie in the file, and the way to write it."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import onnx
import torch
from google.protobuf.message import DecodeError
from torch import Tensor

from worker.sanitizer.programs import onnx_caps, onnx_tensors, onnx_wire
from worker.sanitizer.programs.onnx_caps import Edit
from worker.sanitizer.programs.onnx_tensors import FileTensor
from worker.sanitizer.programs.onnx_wire import Span, Survey
from worker.sanitizer.refusals import (
    CorruptOnnxError,
    OnnxDomainError,
    OnnxDuplicateNameError,
    OnnxFunctionError,
    OnnxInterfaceError,
    OnnxOperatorError,
    OnnxOpsetError,
)

MIN_OPSET = 11
# The newest that the installed package knows; an operator changes its meaning only with a new opset.
MAX_OPSET = onnx.defs.onnx_opset_version()
# Protobuf allows no longer message.
MAX_FILE_BYTES = 2**31 - 1

Attribute = int | float | str | Tensor | tuple[int, ...] | tuple[float, ...]

# What may follow the version: the names of the producer and its notes, the graph, the opsets.
_SECOND_TAGS = frozenset({0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42, 0x72})
_DOMAINS = ("", "ai.onnx")
_COPY_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class OnnxNode:
    """One call of an operator. An input named "" was left out."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """A model with one input and one output.

    Attributes:
        data: The whole file, mapped.
        opset: Of the operators.
        nodes: In an order in which they can be computed; constants are among the tensors instead.
        tensors: Initialisers and constants by name.
        input: Name of the images.
        dims: Their extents, None where free.
        output: Name of the logits.
    """

    data: memoryview
    opset: int
    nodes: tuple[OnnxNode, ...]
    tensors: Mapping[str, FileTensor]
    input: str
    dims: tuple[int | None, ...]
    output: str


def looks_like(first_bytes: bytes) -> bool:
    """Whether a file begins as every writer of ONNX begins: with the version of the format, a small number."""
    if len(first_bytes) < 4:
        return False
    return first_bytes[0] == 0x08 and 3 <= first_bytes[1] < 0x40 and first_bytes[2] in _SECOND_TAGS


def read(path: Path) -> OnnxFile:
    """Read an ONNX file. Tensors are private views of the mapped file: only pages in use cost memory.

    Raises:
        CheckpointRefusedError: see the codes of this module's imports and of `onnx_wire`.
    """
    if not 0 < path.stat().st_size <= MAX_FILE_BYTES:
        raise CorruptOnnxError(f"an ONNX file has 1 to {MAX_FILE_BYTES} bytes; save and upload it again")
    with path.open("rb") as file:
        # A private mapping: torch wants writable memory, and no write may reach the upload.
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    survey = onnx_wire.survey(data)
    try:
        model = onnx.ModelProto.FromString(survey.skeleton)
        return _checked(data, survey, model)
    except (DecodeError, UnicodeDecodeError) as error:
        raise CorruptOnnxError("the file is not a whole ONNX model; save and upload it again") from error


def write(
    file: BinaryIO, source: OnnxFile, tensors: Mapping[str, Tensor], caps: Mapping[str, Tensor] = MappingProxyType({})
) -> None:
    """Write the file again with the bytes of these tensors (of their own shape and dtype) in place of the old ones.

    `caps` are bounds of activations by the names of their values, for which nodes are added.
    """
    edits = onnx_caps.edits(source.data, caps) if caps else []
    for name, tensor in tensors.items():
        values = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
        edits.append(Edit(start := _start(source, name), start + len(values), values))
    position = 0
    for edit in sorted(edits, key=lambda edit: (edit.start, edit.stop)):
        _copy(file, source.data[position : edit.start])
        file.write(edit.data)
        position = edit.stop
    _copy(file, source.data[position:])


def _start(source: OnnxFile, name: str) -> int:
    start = source.tensors[name].start
    assert start is not None, name
    return start


def _copy(file: BinaryIO, data: memoryview) -> None:
    file.writelines(data[start : start + _COPY_BYTES] for start in range(0, len(data), _COPY_BYTES))


def _checked(data: memoryview, survey: Survey, model: onnx.ModelProto) -> OnnxFile:
    graph = model.graph
    opset = _opset(model)
    tensors: dict[str, FileTensor] = {}
    for proto, span in zip(graph.initializer, survey.initializers, strict=True):
        if proto.name in tensors or not proto.name:
            raise OnnxDuplicateNameError(f"two initialisers, or none, are named {proto.name[:80]!r}; export it again")
        tensors[proto.name] = onnx_tensors.read(data, proto, span)
    name, dims = _input(graph, tensors)
    if len(graph.output) != 1:
        raise OnnxInterfaceError(
            f"the graph has {len(graph.output)} outputs; export the network so that it returns its logits alone"
        )
    known = {*tensors, name}
    nodes: list[OnnxNode] = []
    for index, proto in enumerate(graph.node):
        node = _node(data, proto, survey, index)
        for output in filter(None, node.outputs):
            if output in known:
                raise OnnxDuplicateNameError(f"two values are named {output[:80]!r}; export the network again")
            known.add(output)
        constant = node.attributes.get("value")
        if node.op == "Constant" and isinstance(constant, Tensor) and len(node.outputs) == 1:
            span = next((survey.attributes[key] for key in survey.attributes if key[0] == index), None)
            tensors[node.outputs[0]] = FileTensor(constant, onnx_tensors.patchable(span, constant))
        else:
            nodes.append(node)
    if graph.output[0].name not in known:
        raise CorruptOnnxError("no node computes the graph's output; export the network again")
    return OnnxFile(data, opset, tuple(nodes), tensors, name, dims, graph.output[0].name)


def _opset(model: onnx.ModelProto) -> int:
    versions = [entry.version for entry in model.opset_import if entry.domain in _DOMAINS]
    if len(versions) != 1 or not MIN_OPSET <= versions[0] <= MAX_OPSET:
        raise OnnxOpsetError(
            f"the file is of opset {', '.join(map(str, versions[:3])) or 'unknown'}; opsets {MIN_OPSET} to "
            f"{MAX_OPSET} are read here. Export with another one, or convert it with onnx.version_converter"
        )
    return int(versions[0])


def _input(graph: onnx.GraphProto, tensors: Mapping[str, FileTensor]) -> tuple[str, tuple[int | None, ...]]:
    names = [value.name for value in graph.input]
    if len(set(names)) != len(names):
        raise OnnxDuplicateNameError("two inputs have the same name; export the network again")
    # Before version 4 of the format every initialiser is listed as an input too.
    inputs = [value for value in graph.input if value.name not in tensors]
    if len(inputs) != 1:
        raise OnnxInterfaceError(
            f"the graph has {len(inputs)} inputs; export the network so that a batch of images is its only one"
        )
    kind = inputs[0].type.tensor_type
    dims = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
    floating = kind.elem_type in onnx_tensors.FLOATING
    if not floating or len(dims) != 4 or any(dim is not None and not 0 < dim <= 1 << 16 for dim in dims):
        raise OnnxInterfaceError(
            "the graph's input is no batch of images: it must be floating-point, of shape (N, C, H, W) or "
            "(N, H, W, C), and normalised outside the graph; export the network itself"
        )
    return inputs[0].name, dims


def _node(data: memoryview, proto: onnx.NodeProto, survey: Survey, index: int) -> OnnxNode:
    if proto.domain not in _DOMAINS:
        raise OnnxDomainError(
            f"the operator {proto.op_type[:60]!r} is of the domain {proto.domain[:60]!r}; only ONNX's own operators "
            "are read: export without an optimiser for one runtime"
        )
    if proto.overload:
        raise OnnxFunctionError(f"{proto.op_type[:60]!r} calls a function; inline functions and save the file again")
    attributes: dict[str, Attribute] = {}
    for position, attribute in enumerate(proto.attribute):
        if attribute.name in attributes or attribute.ref_attr_name:
            raise OnnxDuplicateNameError(
                f"a node of the operator {proto.op_type[:60]!r} has an attribute twice; export the network again"
            )
        attributes[attribute.name] = _attribute(data, proto, attribute, survey.attributes.get((index, position)))
    return OnnxNode(
        proto.op_type[:100], (proto.name or "")[:200], tuple(proto.input), tuple(proto.output), attributes
    )  # fmt: skip


def _attribute(data: memoryview, node: onnx.NodeProto, attribute: onnx.AttributeProto, span: Span | None) -> Attribute:
    kinds = onnx.AttributeProto
    if attribute.type == kinds.INT:
        return int(attribute.i)
    if attribute.type == kinds.FLOAT:
        return float(attribute.f)
    if attribute.type == kinds.STRING:
        return attribute.s.decode("utf-8")
    if attribute.type == kinds.INTS:
        return tuple(attribute.ints)
    if attribute.type == kinds.FLOATS:
        return tuple(attribute.floats)
    if attribute.type == kinds.TENSOR:
        return onnx_tensors.read(data, attribute.t, span).tensor
    raise OnnxOperatorError(
        f"the attribute {attribute.name[:60]!r} of the operator {node.op_type[:60]!r} is of a kind that is not read"
    )
