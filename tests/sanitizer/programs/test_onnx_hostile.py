"""What an ONNX file may not be: each spoilt file is refused under its own code, and quickly."""

import time

import numpy as np
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper

from tests.sanitizer.programs.onnx_files import graph, initializer, random
from worker.sanitizer import checkpoint
from worker.sanitizer.programs import onnx_wire
from worker.sanitizer.refusals import CheckpointRefusedError

SECONDS = 20


def good():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    return graph(nodes, [initializer("w", random(4, 3, 3, 3))], shape=("n", 3, 8, 8))


@pytest.fixture
def code_of(tmp_path):
    """The code with which a file is refused: a model or its bytes."""

    def refused(spoilt):
        path = tmp_path / "spoilt.onnx"
        path.write_bytes(spoilt.SerializeToString() if isinstance(spoilt, ModelProto) else spoilt)
        began = time.monotonic()
        with pytest.raises(CheckpointRefusedError) as caught:
            checkpoint.read(path)
        assert time.monotonic() - began < SECONDS
        assert len(caught.value.message) < 1000
        return caught.value.code

    return refused


def test_the_file_that_is_spoilt_below_is_a_good_one(tmp_path):
    (tmp_path / "good.onnx").write_bytes(good().SerializeToString())
    assert set(checkpoint.read(tmp_path / "good.onnx").tensors) == {"w"}


# Each takes a good model and spoils it --------------------------------------------------------------------------------


def external(model, location="../../etc/passwd"):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location


def external_location_alone(model):
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL


def external_in_a_constant(model):
    tensor = TensorProto(name="k", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    model.graph.node.insert(0, helper.make_node("Constant", [], ["k"], value=tensor))


def custom_domain(model):
    model.graph.node[0].domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def subgraph(model):
    branch = helper.make_graph([], "b", [], [])
    model.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=branch, else_branch=branch))


def subgraph_in_an_attribute_of_another_kind(model):
    attribute = model.graph.node[0].attribute.add()
    attribute.name, attribute.type = "alpha", AttributeProto.FLOAT
    attribute.g.name = "hidden"


def local_function(model):
    model.functions.append(helper.make_function("custom", "F", ["a"], ["b"], [], [helper.make_opsetid("", 17)]))


def overload(model):
    model.graph.node[0].overload = "f"


def sparse(model):
    model.graph.sparse_initializer.add().dims.append(3)


def sparse_constant(model):
    attribute = AttributeProto(name="sparse_value", type=AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.dims.append(3)
    model.graph.node.add(op_type="Constant", output=["s"]).attribute.append(attribute)


def training(model):
    model.training_info.add().initialization.name = "t"


def training_norm(model):
    model.graph.node[2].op_type, names = "BatchNormalization", ["p", "v", "v", "v", "v"]
    del model.graph.node[2].input[:]
    model.graph.node[2].input.extend(names)
    model.graph.node[2].attribute.append(helper.make_attribute("training_mode", 1))
    model.graph.initializer.append(initializer("v", random(4)))


def two_inputs(model):
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ("n", 3, 8, 8)))


def no_inputs(model):
    del model.graph.input[:]


def two_outputs(model):
    model.graph.output.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, None))


def byte_images(model):
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8


def flat_images(model):
    del model.graph.input[0].type.tensor_type.shape.dim[0]


def absurd_images(model):
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 1 << 40


def no_images(model):
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 0


def absurd_open_size(model):
    for dim in model.graph.input[0].type.tensor_type.shape.dim:
        dim.dim_param = "d"
    model.graph.initializer[0].dims[:] = [3, 4, 3, 3]


def maps_out(model):
    model.graph.output[0].name = "c"


def constant_out(model):
    model.graph.output[0].name = "w"


def same_initializer_twice(model):
    model.graph.initializer.append(model.graph.initializer[0])


def same_output_twice(model):
    model.graph.node[1].output[0] = "c"


def output_named_like_a_weight(model):
    model.graph.node[0].output[0] = "w"


def same_input_twice(model):
    model.graph.input.append(model.graph.input[0])


def same_attribute_twice(model):
    model.graph.node[0].attribute.append(helper.make_attribute("group", 1))
    model.graph.node[0].attribute.append(helper.make_attribute("group", 1))


def old_opset(model):
    model.opset_import[0].version = 10


def future_opset(model):
    model.opset_import[0].version = 10_000


def no_opset(model):
    del model.opset_import[:]


def two_opsets(model):
    model.opset_import.append(helper.make_opsetid("ai.onnx", 16))


def unknown_operator(model):
    model.graph.node[0].op_type = "Conw"


def operator_with_a_huge_name(model):
    model.graph.node[0].op_type = "C" * 100_000


def nodes_out_of_order(model):
    first = type(model.graph.node[0])()
    first.CopyFrom(model.graph.node[0])
    del model.graph.node[0]
    model.graph.node.append(first)


def cycle(model):
    model.graph.node[0].input[0] = "p"


def missing_output(model):
    model.graph.output[0].name = "nowhere"


def wrong_size(model):
    model.graph.initializer[0].dims[0] = 5


def absurd_shape(model):
    model.graph.initializer[0].dims[:] = [0, 1 << 62, 1 << 62, 1 << 62]


def negative_shape(model):
    model.graph.initializer[0].dims[:] = [-4, -3, 3, 3]


def wrong_dtype(model):
    model.graph.initializer[0].data_type = TensorProto.STRING


def quantised(model):
    model.graph.initializer[0].data_type = TensorProto.FLOAT4E2M1


def not_finite(model):
    values = random(4, 3, 3, 3)
    values[1, 1, 1, 1] = np.nan
    model.graph.initializer[0].raw_data = values.tobytes()


def values_twice(model):
    model.graph.initializer[0].float_data.extend([1.0] * 108)


def segment(model):
    model.graph.initializer[0].segment.begin = 1


def shapes_that_do_not_fit(model):
    model.graph.initializer[0].dims[:] = [4, 9, 1, 3]


def huge_constant(model):
    number = helper.make_tensor("v", TensorProto.INT64, [4], [1 << 12] * 4)
    model.graph.node.insert(0, helper.make_node("Constant", [], ["s"], value=number))
    model.graph.node.insert(1, helper.make_node("ConstantOfShape", ["s"], ["big"]))
    model.graph.node.append(helper.make_node("Add", ["c", "big"], ["z"]))
    model.graph.output[0].name = "z"


def many_halves_of_a_huge_constant(model):
    """Each constant is allowed; all together are not."""
    number = helper.make_tensor("v", TensorProto.INT64, [2], [1 << 11, 1 << 11])
    model.graph.node.insert(0, helper.make_node("Constant", [], ["s"], value=number))
    last = "c"
    for index in range(20):
        model.graph.node.append(helper.make_node("ConstantOfShape", ["s"], [f"big{index}"]))
        model.graph.node.append(helper.make_node("ReduceMax", [f"big{index}"], [f"m{index}"]))
        model.graph.node.append(helper.make_node("Add", [last, f"m{index}"], [f"a{index}"]))
        last = f"a{index}"
    model.graph.node.append(helper.make_node("GlobalAveragePool", [last], ["q"]))
    model.graph.node.append(helper.make_node("Flatten", ["q"], ["z"]))
    model.graph.output[0].name = "z"


def doubling(model):
    last = "c"
    for index in range(40):
        model.graph.node.append(helper.make_node("Concat", [last, last], [f"d{index}"], axis=1))
        last = f"d{index}"
    model.graph.output[0].name = last


def huge_range(model):
    for name, value in (("a", 0), ("b", 1 << 50), ("d", 1)):
        model.graph.initializer.append(initializer(name, np.int64(value)))
    model.graph.node.append(helper.make_node("Range", ["a", "b", "d"], ["r"]))
    model.graph.node.append(helper.make_node("Gather", ["c", "r"], ["z"]))
    model.graph.output[0].name = "z"


def huge_padding(model):
    model.graph.node[0].attribute.append(helper.make_attribute("pads", [1 << 40] * 4))


def hidden_equation(model):
    model.graph.node.append(helper.make_node("Einsum", ["y"], ["z"], equation='ab->ab");import os;("'))
    model.graph.output[0].name = "z"


def unknown_attribute_kind(model):
    model.graph.node[0].attribute.append(helper.make_attribute("pads", ["a", "b"]))


SPOILT = {
    "onnx_external_data": (external, external_location_alone, external_in_a_constant),
    "onnx_custom_domain": (custom_domain,),
    "onnx_subgraph": (subgraph, subgraph_in_an_attribute_of_another_kind),
    "onnx_function": (local_function, overload),
    "onnx_sparse_tensor": (sparse, sparse_constant),
    "onnx_training_graph": (training, training_norm),
    "onnx_inputs_outputs": (
        *(two_inputs, no_inputs, two_outputs, byte_images, flat_images, absurd_images, no_images),
        *(maps_out, constant_out),
    ),
    "onnx_duplicate_name": (
        *(same_initializer_twice, same_output_twice, output_named_like_a_weight, same_input_twice),
        same_attribute_twice,
    ),
    "onnx_opset": (old_opset, future_opset, no_opset, two_opsets),
    "onnx_operator": (
        *(unknown_operator, operator_with_a_huge_name, shapes_that_do_not_fit, hidden_equation),
        *(unknown_attribute_kind, huge_padding, absurd_open_size),
    ),
    "corrupt_onnx": (nodes_out_of_order, cycle, missing_output, wrong_size, negative_shape, values_twice, segment),
    "absurd_tensor_shape": (absurd_shape,),
    "unsupported_dtype": (wrong_dtype, quantised),
    "non_finite_weights": (not_finite,),
    "onnx_too_complex": (huge_constant, many_halves_of_a_huge_constant, doubling, huge_range),
}


@pytest.mark.parametrize(
    ("code", "spoil"), [pytest.param(code, spoil, id=spoil.__name__) for code, all_ in SPOILT.items() for spoil in all_]
)
def test_a_spoilt_file_is_refused_under_its_code(code, spoil, code_of):
    model = good()
    spoil(model)
    assert code_of(model) == code


# Bytes that no writer makes -------------------------------------------------------------------------------------------


def field(number, payload):
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def varint(value):
    out = b""
    while value >= 0x80:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


HEAD = b"\x08\x08"
OPSET = field(8, b"\x10\x11")


def test_every_cut_of_a_good_file_is_refused(code_of):
    data = good().SerializeToString()
    assert {code_of(data[:length]) for length in range(4, len(data), 37)} <= {
        *("corrupt_onnx", "onnx_opset", "onnx_inputs_outputs", "unknown_checkpoint_format"),
    }


def test_a_second_graph_is_not_merged_into_the_first(code_of):
    data = good().SerializeToString()
    assert code_of(data + field(7, field(2, b"again"))) == "corrupt_onnx"


def test_external_data_is_seen_however_the_graph_is_split(code_of):
    model = good()
    external(model)
    whole = model.SerializeToString()
    assert code_of(HEAD + field(7, field(5, field(13, b""))) + OPSET) == "onnx_external_data"
    assert code_of(whole) == "onnx_external_data"


@pytest.mark.parametrize(
    "data",
    [
        HEAD + b"\x3a" + b"\xff" * 11,
        HEAD + b"\x3a\x7f",
        HEAD + OPSET + b"\x3b\x3c",
        HEAD + b"\x3a\x01\x00" + OPSET,
        HEAD + b"\x42\x02\x0a\x05" + OPSET,
        HEAD + OPSET + b"\x3d\x00",
    ],
    ids=["endless number", "too short", "group", "field zero", "beyond its parent", "half a number"],
)
def test_bytes_that_are_no_message_are_refused(data, code_of):
    assert code_of(data) == "corrupt_onnx"


def test_text_that_is_no_utf8_is_refused(code_of):
    data = good().SerializeToString().replace(b"GlobalAveragePool", b"\xff" * 17)
    assert code_of(data) in {"corrupt_onnx", "onnx_operator"}


def test_messages_within_messages_are_counted_before_protobuf_sees_them(code_of):
    empty_nodes = b"\x0a\x00" * (onnx_wire.MAX_NODES + 1)
    assert code_of(HEAD + field(7, empty_nodes) + OPSET) == "onnx_too_complex"
    empty_tensors = b"\x2a\x00" * (onnx_wire.MAX_TENSORS + 1)
    assert code_of(HEAD + field(7, empty_tensors) + OPSET) == "onnx_too_complex"
    empty_attributes = field(1, b"\x2a\x00" * (onnx_wire.MAX_FIELDS + 1))
    assert code_of(HEAD + field(7, empty_attributes) + OPSET) == "onnx_too_complex"


def test_a_large_message_without_weights_is_refused(code_of):
    note = b"n" * (onnx_wire.MAX_SKELETON_BYTES + 1)
    assert code_of(HEAD + field(6, note) + OPSET) == "onnx_too_complex"


def test_types_nested_without_end_are_refused(code_of):
    kind = b""
    for _ in range(100):
        kind = field(4, field(1, kind))
    assert code_of(HEAD + field(7, field(11, field(2, kind))) + OPSET) == "onnx_too_complex"


def test_what_the_output_does_not_need_is_never_built(tmp_path):
    model = good()
    model.graph.node.append(helper.make_node("NoSuchOperator", ["c"], ["unused"]))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert checkpoint.read(tmp_path / "m.onnx").tensors
