"""Members and raw tensors: every way of keeping a pickle or compiled code is refused, and so is a size that lies."""

import pytest


@pytest.mark.parametrize(
    ("added", "code"),
    [
        ({"data/constants/custom_obj_0": b"x"}, "program_custom_object"),
        ({"data/constants/opaque_obj_0": b"x"}, "program_custom_object"),
        ({"data/aotinductor/model/lib.so": b"\x7fELF"}, "compiled_package"),
        ({"data/executorch/model.pte": b"x"}, "compiled_package"),
        ({"data/weights/model.pt": b"x"}, "old_export_layout"),
        ({"data/constants/model.pt": b"x"}, "old_export_layout"),
        ({"serialized_exported_program.json": b"{}"}, "old_export_layout"),
        ({"models/other.json": b"{}"}, "several_programs"),
        ({"extra/notes.txt": b"x"}, "unknown_archive_member"),
        ({"data/weights/weight_999": b"xxxx"}, "corrupt_program"),
        ({"archive_version": b"0" * 5000}, "unknown_archive_member"),
        ({"byteorder": b"big"}, "unsupported_byte_order"),
        ({"data/sample_inputs/model.pt": None}, "corrupt_program"),
        ({"data/weights/model_weights_config.json": None}, "corrupt_program"),
        ({"data/weights/weight_0": None}, "corrupt_program"),
        ({"models/model.json": None}, "unknown_archive_member"),
        ({"data/weights/weight_0": b""}, "tensor_exceeds_storage"),
    ],
)
def test_a_member_that_no_classifier_needs_or_a_missing_one_is_refused(code_of, added, code):
    assert code_of(added) == code


def meta(document, **changes):
    document["config"]["conv.weight"]["tensor_meta"].update(changes)


def ints(*values):
    return [{"as_int": value} for value in values]


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (lambda d: d["config"]["conv.weight"].update(use_pickle=True), "program_pickled_tensor"),
        (lambda d: d["config"]["conv.weight"].update(path_name="../../x"), "corrupt_program"),
        (lambda d: d["config"]["conv.weight"].update(path_name="weight_77"), "corrupt_program"),
        (lambda d: d["config"]["conv.weight"].update(tensor_meta=None), "corrupt_program"),
        (lambda d: meta(d, dtype=9), "unsupported_dtype"),
        (lambda d: meta(d, dtype=True), "corrupt_program"),
        (lambda d: meta(d, layout=1), "unsupported_tensor"),
        (lambda d: meta(d, strides=ints(0, 0, 0, 0)), "unsupported_tensor"),
        (lambda d: meta(d, strides=ints(9, 9, 3, 1)), "unsupported_tensor"),
        (lambda d: meta(d, strides=ints(-27, 9, 3, 1)), "corrupt_program"),
        (lambda d: meta(d, sizes=ints(8, 3, 3)), "corrupt_program"),
        (lambda d: meta(d, sizes=ints(2**40, 3, 3, 3)), "absurd_tensor_shape"),
        (lambda d: meta(d, sizes=ints(0, 2**60, 3, 3)), "absurd_tensor_shape"),
        (lambda d: meta(d, sizes=ints(9, 3, 3, 3)), "tensor_exceeds_storage"),
        (lambda d: meta(d, storage_offset={"as_int": 1}), "tensor_exceeds_storage"),
        (lambda d: meta(d, sizes=[{"as_expr": {"expr_str": "s0"}}] * 4), "corrupt_program"),
        (lambda d: d["config"].update({"x.graph.<": d["config"]["conv.weight"]}), "program_tensor_name"),
        (lambda d: d["config"].update({'a").b': d["config"]["conv.weight"]}), "program_tensor_name"),
        (lambda d: d["config"].update({"graph": d["config"]["conv.weight"]}), "program_tensor_name"),
        (lambda d: d["config"].update({"conv.forward": d["config"]["conv.weight"]}), "program_tensor_name"),
        (lambda d: d["config"].update({"conv": d["config"]["conv.weight"]}), "program_tensor_name"),
    ],
)
def test_a_tensor_that_is_not_plain_and_whole_is_refused(code_of, edit, code):
    assert code_of(weights=edit) == code


def test_a_pickled_constant_is_refused(code_of):
    assert code_of(constants=lambda d: d["config"]["scale"].update(use_pickle=True)) == "program_pickled_tensor"


def test_a_constant_named_like_a_weight_is_refused(code_of):
    def rename(document):
        document["config"]["conv.weight"] = document["config"].pop("scale")

    assert code_of(constants=rename) == "corrupt_program"
