"""From an ONNX file to the graph that is profiled and repaired."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

import onnx
import torch
from torch import fx

from worker.sanitizer.capping import VALUE_NAME
from worker.sanitizer.programs import (
    onnx_constants,
    onnx_elementwise,
    onnx_fusions,
    onnx_layers,
    onnx_pools,
    onnx_shapes,
)
from worker.sanitizer.programs.onnx_builder import FREE_BATCHES, Builder, aten
from worker.sanitizer.programs.onnx_call import Call, Handler
from worker.sanitizer.programs.onnx_file import OnnxFile, OnnxNode
from worker.sanitizer.programs.onnx_values import Origin, Value
from worker.sanitizer.programs.program import Program
from worker.sanitizer.refusals import CheckpointRefusedError, CorruptOnnxError, OnnxInterfaceError, OnnxOperatorError

MAX_CHANNELS = 64
_CHANNELS_LAST = (1, 3, 4)
_LIKELY_SIDES = (224, 32, 64, 256, 299, 384, 28, 96, 128, 512)

_OPERATORS: dict[str, Handler] = {
    **onnx_elementwise.operators(),
    **onnx_layers.operators(),
    **onnx_pools.operators(),
    **onnx_shapes.operators(),
    **onnx_constants.operators(),
}
_OTHER_FLOATS = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
# The order of the classes does not change under these, and what lies before them are logits.
_MONOTONE = ("Softmax", "LogSoftmax")


@dataclass(frozen=True, slots=True)
class Imported:
    """A program, and where each tensor of it comes from that a change is written back to."""

    program: Program
    origins: dict[str, Origin]


def to_program(file: OnnxFile) -> Imported:
    """Build the graph. A batch size that the file fixes is freed where its shapes allow it.

    Raises:
        CheckpointRefusedError: onnx_operator, onnx_inputs_outputs, onnx_too_complex, corrupt_onnx.
    """
    if None not in file.dims[1:]:
        return _of_size(file)
    # Until the job says how large its images are, any size will do that the network takes.
    for channels, side in itertools.product((3, 1), _LIKELY_SIDES):
        with suppress(CheckpointRefusedError):
            return _of_size(with_size(file, channels, side, side))
    return _of_size(with_size(file, 3, _LIKELY_SIDES[0], _LIKELY_SIDES[0]))


def with_size(file: OnnxFile, channels: int, height: int, width: int) -> OnnxFile:
    """The file with the extents that it leaves open filled in."""
    _, second, third, fourth = file.dims
    is_last = second is None and third is None and fourth in _CHANNELS_LAST
    wanted = (height, width, channels) if is_last else (channels, height, width)
    given = tuple(new if old is None else old for old, new in zip(file.dims[1:], wanted, strict=True))
    return dataclasses.replace(file, dims=(file.dims[0], *given))


def _of_size(file: OnnxFile) -> Imported:
    declared = file.dims[0]
    if declared is None:
        return _build(file, FREE_BATCHES)
    try:
        return _build(file, FREE_BATCHES)
    except CheckpointRefusedError:
        return _build(file, (declared,))


def _build(file: OnnxFile, batches: tuple[int, ...]) -> Imported:
    builder = Builder(dict(file.tensors), batches)
    values = {file.input: _images(builder, file)}
    alive = _alive(file)
    uses = Counter(name for node in alive for name in node.inputs) + Counter([file.output])
    output, is_float32 = file.output, _is_float32(file)
    for node in alive:
        if output in node.outputs and node.op in _MONOTONE and _is_over_classes(file, node, values):
            values[output] = values[node.inputs[0]]
            continue
        _run(builder, file, node, values, uses)
        if is_float32:
            _name(node, values)
    if output not in values:
        values[output] = builder.file_tensor(output)
    logits = values[output]
    rows = [sample.shape[0] if sample.dim() == 2 else None for sample in logits.samples]
    if logits.node is None or rows != list(batches) or len({sample.shape[-1] for sample in logits.samples}) != 1:
        raise OnnxInterfaceError(
            f"the output is of shape {tuple(logits.samples[0].shape)} for {batches[0]} images, not one row of logits "
            "for each; export the classifier itself, with its logits as the only output"
        )
    builder.graph.output(logits.node)
    onnx_fusions.fuse(builder.graph)
    onnx_fusions.with_scales(builder.graph)
    module = fx.GraphModule(builder.root, builder.graph)
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    origins = {name: origin for name, origin in builder.origins.items() if name in held}
    return Imported(Program(module, file.dims[0]), origins)


def _images(builder: Builder, file: OnnxFile) -> Value:
    """The input as the file has it: channels behind where they are few there and many in their usual place."""
    _, second, third, fourth = file.dims
    assert second is not None
    assert third is not None
    assert fourth is not None
    if fourth in _CHANNELS_LAST and second > max(_CHANNELS_LAST):
        return builder.call(aten.permute.default, builder.images(fourth, second, third), [0, 2, 3, 1])
    if second > MAX_CHANNELS:
        raise OnnxInterfaceError(f"the images have {second} channels, at most {MAX_CHANNELS} are accepted")
    return builder.images(second, third, fourth)


def _alive(file: OnnxFile) -> list[OnnxNode]:
    """The nodes that the output depends on; what else is in the graph is never looked at."""
    wanted = {file.output}
    alive = []
    for node in reversed(file.nodes):
        if wanted.intersection(node.outputs):
            wanted.update(node.inputs)
            alive.append(node)
    return alive[::-1]


def _is_float32(file: OnnxFile) -> bool:
    """Whether no floating-point number of the file is of another kind, so that every activation is in float32."""
    stored = (one.tensor.dtype for one in file.tensors.values() if one.tensor.is_floating_point())
    return all(dtype is torch.float32 for dtype in stored) and not any(
        node.op == "CastLike" or (node.op == "Cast" and node.attributes.get("to") in _OTHER_FLOATS)
        for node in file.nodes
    )


def _is_over_classes(file: OnnxFile, node: OnnxNode, values: dict[str, Value]) -> bool:
    axis = node.attributes.get("axis", -1 if file.opset >= 13 else 1)
    source = values.get(node.inputs[0]) if node.inputs else None
    return source is not None and source.rank == 2 and axis in {1, -1}


def _name(node: OnnxNode, values: dict[str, Value]) -> None:
    """Note what the file calls the values of a node; an operator that passes its input on leaves the first name."""
    made = {name: values[name].node for name in node.outputs if name in values}
    for name, computed in made.items():
        if name and computed is not None and computed.op == "call_function":
            computed.meta.setdefault(VALUE_NAME, name)


def _run(builder: Builder, file: OnnxFile, node: OnnxNode, values: dict[str, Value], uses: Counter[str]) -> None:
    handler = _OPERATORS.get(node.op)
    if handler is None:
        raise OnnxOperatorError(
            f"the operator {node.op!r} is not supported; simplify the graph, or upload the weights with the name of "
            "their architecture"
        )
    builder.where = f"the node {node.name!r} ({node.op})"
    inputs: list[Value | None] = []
    for name in node.inputs:
        if name and name not in values:
            if name not in file.tensors:
                raise CorruptOnnxError(f"no node before it computes {name[:80]!r}; the nodes must be in order")
            values[name] = builder.file_tensor(name)
        inputs.append(values[name] if name else None)
    result = handler(Call(builder, node, file.opset, tuple(inputs), uses, file.dims[0]))
    results = result if isinstance(result, list) else [result]
    for index, name in enumerate(node.outputs):
        if index < len(results):
            values[name] = results[index]
        elif uses[name]:
            raise builder.refusal(f"has an output {index} that is not supported")
