"""The bytes of an ONNX file: walked within limits, weights set aside, before protobuf sees any of it.

Protobuf's parser would make objects out of every two bytes, and copies of every weight. This walk counts the fields
first, refuses what is never accepted, and returns a skeleton (the same message without weight bytes) together with the
places where those bytes lie, so that they can be mapped, and later overwritten, where they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from worker.sanitizer.refusals import (
    CheckpointRefusedError,
    CorruptOnnxError,
    OnnxExternalDataError,
    OnnxFunctionError,
    OnnxSparseTensorError,
    OnnxSubgraphError,
    OnnxTooComplexError,
    OnnxTrainingError,
)

MAX_FIELDS = 1_000_000
MAX_DEPTH = 16
MAX_NODES = 50_000
MAX_TENSORS = 20_000
MAX_SKELETON_BYTES = 32 * 1024 * 1024

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10
_RAW, _FLOATS, _DOUBLES = 9, 4, 10
# What is refused by its mere presence: the message that it stands in, and its field number there.
_REFUSED: dict[tuple[str, int], tuple[type[CheckpointRefusedError], str]] = {
    ("ModelProto", 20): (OnnxTrainingError, "the file holds a training graph; export the network for inference"),
    ("ModelProto", 25): (
        OnnxFunctionError,
        "the file defines functions of its own; inline them with onnx.inliner.inline_local_functions and save it again",
    ),
    ("GraphProto", 15): (OnnxSparseTensorError, "the file holds sparse weights; export the network with dense ones"),
    ("AttributeProto", 6): (
        OnnxSubgraphError,
        "the file holds a graph within a graph (If, Loop or Scan); export the network for inference and simplify it",
    ),
    ("AttributeProto", 22): (
        OnnxSparseTensorError,
        "the file holds a sparse constant; export the network with dense ones",
    ),
    ("TensorProto", 13): (
        OnnxExternalDataError,
        "the file keeps weights in other files; save it as one file: onnx.save(onnx.load(path), new_path)",
    ),
}
_REFUSED[("AttributeProto", 11)] = _REFUSED[("AttributeProto", 6)]
_REFUSED[("AttributeProto", 23)] = _REFUSED[("AttributeProto", 22)]


@dataclass(frozen=True, slots=True)
class Span:
    """Where the values of one tensor lie, packed and little-endian.

    Attributes:
        number: Field that holds them: raw_data, float_data or double_data.
        start: First byte in the file.
        stop: One past the last byte.
    """

    number: int
    start: int
    stop: int


@dataclass(slots=True)
class Survey:
    """What the walk found. A tensor whose values are not packed, and so lie in the skeleton, has no span.

    Attributes:
        skeleton: The serialised model without the bytes of the spans.
        initializers: One entry for each initialiser, in the file's order.
        attributes: Spans of tensors in attributes, by position of the node and of the attribute.
    """

    skeleton: bytes = b""
    initializers: list[Span | None] = field(default_factory=list)
    attributes: dict[tuple[int, int], Span] = field(default_factory=dict)


def survey(data: memoryview) -> Survey:
    """Walk a serialised ModelProto.

    Raises:
        CheckpointRefusedError: corrupt_onnx, onnx_too_complex, onnx_external_data, onnx_subgraph, onnx_function,
            onnx_sparse_tensor, onnx_training_graph.
    """
    walk = _Walk(data)
    skeleton = walk.message(onnx.ModelProto.DESCRIPTOR, 0, len(data), 0)
    if len(skeleton) > MAX_SKELETON_BYTES:
        raise OnnxTooComplexError(
            f"without its weights the file has {len(skeleton)} bytes, at most {MAX_SKELETON_BYTES} are accepted; "
            "save the weights as initialisers with raw data, and leave out metadata"
        )
    walk.found.skeleton = skeleton
    return walk.found


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a message that holds bytes: its number, its first byte, where those begin, and one past the last."""

    number: int
    begin: int
    payload: int
    stop: int


def fields(data: memoryview, start: int, stop: int) -> Iterator[Field]:
    """Those of the message from `start` to `stop` that hold bytes, in order, of a file that `survey` accepted."""
    walk = _Walk(data)
    while start < stop:
        number, wire, payload, end = walk.field(start, stop)
        if wire == _BYTES:
            yield Field(number, start, payload, end)
        start = end


class _Walk:
    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.found = Survey()
        self.num_fields = 0
        self.copied_bytes = 0
        self.node, self.attribute = -1, -1
        self.span: Span | None = None

    def message(self, kind: Descriptor, start: int, stop: int, depth: int) -> bytes:
        """Return the message without the values of its tensors."""
        if depth > MAX_DEPTH:
            raise OnnxTooComplexError(f"the file nests more than {MAX_DEPTH} messages; export the network again")
        chunks: list[bytes | memoryview] = []
        singular: set[int] = set()
        position = start
        while position < stop:
            begin = position
            number, wire, payload, position = self.field(position, stop)
            known = kind.fields_by_number.get(number)
            self.refuse(kind.name, number, wire, begin, payload)
            if known is None or known.type != FieldDescriptor.TYPE_MESSAGE or wire != _BYTES:
                if not (kind.name == "TensorProto" and self.set_aside(number, wire, payload, position)):
                    chunks.append(self.data[begin:position])
                continue
            # Protobuf merges what occurs twice; no writer does that, and positions would no longer be unique.
            if not known.is_repeated:
                if number in singular:
                    raise _corrupt(f"{kind.name}.{known.name} occurs twice")
                singular.add(number)
            child = known.message_type
            assert child is not None
            content = self.child(kind.name, number, child, payload, position, depth)
            chunks += [varint_bytes(number << 3 | _BYTES), varint_bytes(len(content)), content]
        result = b"".join(chunks)
        if len(result) > MAX_SKELETON_BYTES:
            raise OnnxTooComplexError(
                f"without its weights a part of the file has more than {MAX_SKELETON_BYTES} bytes; save the weights "
                "as initialisers with raw data, and leave out metadata"
            )
        return result

    def child(self, parent: str, number: int, kind: Descriptor, start: int, stop: int, depth: int) -> bytes:
        """Return a message within another, and note whose tensor it was."""
        if kind.name == "NodeProto":
            self.node, self.attribute = self.node + 1, -1
            if self.node >= MAX_NODES:
                raise OnnxTooComplexError(f"the graph has more than {MAX_NODES} nodes; simplify it")
        elif kind.name == "AttributeProto":
            self.attribute += 1
        elif kind.name == "TensorProto":
            self.span = None
        content = self.message(kind, start, stop, depth + 1)
        if kind.name == "TensorProto":
            self.keep_span(parent, number)
        return content

    def keep_span(self, parent: str, number: int) -> None:
        """Note the span of the tensor just walked for what holds it."""
        if (parent, number) == ("GraphProto", 5):
            self.found.initializers.append(self.span)
            if len(self.found.initializers) > MAX_TENSORS:
                raise OnnxTooComplexError(f"the graph has more than {MAX_TENSORS} initialisers; simplify it")
        elif self.span is not None:
            if (parent, number) != ("AttributeProto", 5):
                raise _corrupt("a tensor stands where no operator takes one")
            self.found.attributes[self.node, self.attribute] = self.span

    def set_aside(self, number: int, wire: int, start: int, stop: int) -> bool:
        """Whether a tensor's field holds its packed values; then they are noted and not copied."""
        if wire != _BYTES or number not in {_RAW, _FLOATS, _DOUBLES}:
            return False
        if self.span is not None:
            raise _corrupt("a tensor has its values twice")
        self.span = Span(number, start, stop)
        return True

    def refuse(self, kind: str, number: int, wire: int, begin: int, payload: int) -> None:
        if wire == _BYTES and (kind, number) in _REFUSED:
            refusal, message = _REFUSED[kind, number]
            raise refusal(message)
        if kind == "TensorProto" and number == 14 and wire == _VARINT and self.varint(payload, len(self.data))[0]:
            refusal, message = _REFUSED["TensorProto", 13]
            raise refusal(message)
        if kind == "TensorProto" and number == 3:
            raise _corrupt(f"the tensor at byte {begin} is split into segments")

    def field(self, position: int, stop: int) -> tuple[int, int, int, int]:
        """Return number, wire type, where the payload starts, and where the field ends."""
        self.num_fields += 1
        if self.num_fields > MAX_FIELDS:
            raise OnnxTooComplexError(f"the file has more than {MAX_FIELDS} fields; simplify the graph")
        tag, payload = self.varint(position, stop)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            end = self.varint(payload, stop)[1]
        elif wire == _FIXED64:
            end = payload + 8
        elif wire == _FIXED32:
            end = payload + 4
        elif wire == _BYTES:
            length, payload = self.varint(payload, stop)
            end = payload + length
        else:
            raise _corrupt(f"byte {position} begins no field")
        if end > stop or not 0 < number < 1 << 29:
            raise _corrupt(f"the field at byte {position} does not end where it should")
        return number, wire, payload, end

    def varint(self, position: int, stop: int) -> tuple[int, int]:
        value = 0
        for shift in range(_MAX_VARINT_BYTES):
            if position + shift >= stop:
                break
            byte = self.data[position + shift]
            value |= (byte & 0x7F) << 7 * shift
            if byte < 0x80:
                return value, position + shift + 1
        raise _corrupt(f"byte {position} begins no number")


def varint_bytes(value: int) -> bytes:
    """A whole number as protobuf writes it."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _corrupt(what: str) -> CorruptOnnxError:
    return CorruptOnnxError(f"the file is not a whole ONNX model ({what}); save and upload it again")
