"""Bounds of activations, put into an ONNX file as Min nodes, without touching any other byte than they must.

The node that made a value makes it under another name, and a Min of it and the bound bears the old one: whoever read
the value reads the bounded one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor

from worker.sanitizer.programs import onnx_wire
from worker.sanitizer.programs.naming import fresh

_GRAPH_TAG, _NODE_TAG, _INITIALIZER_TAG = 0x3A, 0x0A, 0x2A
_GRAPH, _NODE = 7, 1


@dataclass(frozen=True, slots=True)
class Edit:
    """Bytes that take the place of those from `start` to `stop` of a file."""

    start: int
    stop: int
    data: bytes | memoryview


def edits(data: memoryview, caps: Mapping[str, Tensor]) -> list[Edit]:
    """What to change in a file for these bounds.

    Args:
        data: A file that `onnx_file.read` accepted.
        caps: By the name of a value that a node makes, what it is bounded by: float32, and broadcast over it.
    """
    # What names there are is told without the bytes of any weight.
    outline = onnx.ModelProto.FromString(onnx_wire.survey(data).skeleton).graph
    makers = {index for index, node in enumerate(outline.node) if not caps.keys().isdisjoint(node.output)}
    taken = _names(outline)
    graph = next(field for field in onnx_wire.fields(data, 0, len(data)) if field.number == _GRAPH)
    nodes = (field for field in onnx_wire.fields(data, graph.payload, graph.stop) if field.number == _NODE)
    found: list[Edit] = []
    stored = bytearray()
    for field in (field for index, field in enumerate(nodes) if index in makers):
        node = onnx.NodeProto.FromString(data[field.payload : field.stop].tobytes())
        made = bytearray()
        for value in [name for name in node.output if name in caps]:
            before, cap = fresh(f"{value}_uncapped", taken), fresh(f"lustrate_cap_{len(found)}", taken)
            node.output[list(node.output).index(value)] = before
            bound = onnx.NodeProto(op_type="Min", name=f"{cap}_min", input=[before, cap], output=[value])
            made += _field(_NODE_TAG, bound.SerializeToString())
            stored += _field(_INITIALIZER_TAG, _initializer(cap, caps[value]).SerializeToString())
        found.append(Edit(field.begin, field.stop, bytes(_field(_NODE_TAG, node.SerializeToString()) + made)))
    found.append(Edit(graph.stop, graph.stop, bytes(stored)))
    longer = sum(len(edit.data) - (edit.stop - edit.start) for edit in found)
    size = onnx_wire.varint_bytes(graph.stop - graph.payload + longer)
    return [Edit(graph.begin, graph.payload, bytes([_GRAPH_TAG]) + size), *found]


def _names(graph: onnx.GraphProto) -> set[str]:
    of_nodes = {name for node in graph.node for name in (*node.input, *node.output)}
    described = (*graph.initializer, *graph.input, *graph.output, *graph.value_info)
    return of_nodes | {one.name for one in described}


def _initializer(name: str, cap: Tensor) -> onnx.TensorProto:
    values = cap.detach().cpu().to(torch.float32).contiguous()
    return onnx.TensorProto(
        name=name, data_type=onnx.TensorProto.FLOAT, dims=list(values.shape), raw_data=values.numpy().tobytes()
    )


def _field(tag: int, content: bytes) -> bytes:
    return bytes([tag]) + onnx_wire.varint_bytes(len(content)) + content
