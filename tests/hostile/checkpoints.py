"""Hostile safetensors, torch, `.pt2` and ONNX files."""

from __future__ import annotations

import functools
import json
import struct
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, TensorProto, helper

from tests.hostile import pickles, zips
from tests.hostile.case import NEUTRALISED, Case, case, from_rows, rows
from tests.sanitizer import test_checkpoint_hostile as checkpoints
from tests.sanitizer.programs import conftest as pt2
from tests.sanitizer.programs import test_onnx_hostile as onnx
from tests.sanitizer.programs import test_pt2_archive, test_pt2_document, test_pt2_graph
from tests.sanitizer.test_checkpoint_hostile import STATE, safetensors, torch_bytes, with_pickle
from tests.sanitizer.test_dataset import image

_PNG_HEAD = b"\x89PNG\r\n\x1a\n"


def _floats(dtype: str, *bits: int) -> bytes:
    """A safetensors file of one weight with these bits."""
    size = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}[dtype]
    data = b"".join(number.to_bytes(size, "little") for number in bits)
    return safetensors({"a": {"dtype": dtype, "shape": [len(bits)], "data_offsets": [0, len(data)]}}, data)


def safetensors_cases() -> list[Case]:
    """Headers and data that do not agree, or say what no network says."""
    good = safetensors({"a": checkpoints.ENTRY}, bytes(8))
    entry = checkpoints.ENTRY
    odd: dict[str, tuple[bytes, str]] = {
        "zip-behind": (good + torch_bytes(), "corrupt_safetensors"),
        "zip-before": (torch_bytes() + good, "corrupt_archive"),
        "cut-in-length": (good[:5], "unknown_checkpoint_format"),
        "cut-in-header": (good[:30], "corrupt_safetensors"),
        "cut-in-data": (good[:-1], "corrupt_safetensors"),
        "wrong-magic": (good[:8] + b"[" + good[9:], "unknown_checkpoint_format"),
        "big-endian-length": (good[:8][::-1] + good[8:], "header_too_large"),
        "negative-length": (struct.pack("<q", -1) + good[8:], "header_too_large"),
        "blank-header": (safetensors(b"{" + b" " * 2**20 + b"}"), "no_state_dict"),
        "header-of-limit": (safetensors(b"{" + b" " * (4 * 2**20)), "header_too_large"),
        "many-metadata": (safetensors({"__metadata__": {str(i): "x" for i in range(30_000)}}), "too_many_tensors"),
        "metadata-nested": (safetensors({"__metadata__": {"a": {"b": "c"}}}), "corrupt_safetensors"),
        "metadata-list": (safetensors({"__metadata__": ["a"]}), "corrupt_safetensors"),
        "two-spellings": (safetensors(b'{"a": %b, "\\u0061": %b}' % ((json.dumps(entry).encode(),) * 2), bytes(8)),
                          "corrupt_safetensors"),
        "metadata-twice": (safetensors(b'{"__metadata__": {}, "__metadata__": {}}'), "corrupt_safetensors"),
        "byte-order-mark": (safetensors(b'\xef\xbb\xbf{}'), "unknown_checkpoint_format"),
        "utf-16": (safetensors('{"a": 1}'.encode("utf-16-le")), "corrupt_safetensors"),
        "null-in-header": (safetensors(b'{"a": 1}\0\0'), "corrupt_safetensors"),
        "infinity-in-header": (safetensors(b'{"a": Infinity}'), "corrupt_safetensors"),
        "huge-exponent": (safetensors(b'{"a": {"dtype": "F32", "shape": [1e400], "data_offsets": [0, 8]}}'),
                          "corrupt_safetensors"),
        "huge-integers": (safetensors({"a": {**entry, "shape": [2**64], "data_offsets": [0, 2**66]}}),
                          "absurd_tensor_shape"),
        "overflowing-product": (safetensors({"a": {**entry, "shape": [2**32, 2**32], "data_offsets": [0, 0]}}),
                                "absurd_tensor_shape"),
        "offsets-beyond": (safetensors({"a": {**entry, "data_offsets": [2**40, 2**40 + 8]}}, bytes(8)),
                           "corrupt_safetensors"),
        "offsets-negative": (safetensors({"a": {**entry, "data_offsets": [-8, 0]}}, bytes(8)), "corrupt_safetensors"),
        "three-offsets": (safetensors({"a": {**entry, "data_offsets": [0, 4, 8]}}, bytes(8)), "corrupt_safetensors"),
        "overlap": (safetensors({"a": entry, "b": {**entry, "data_offsets": [4, 12]}}, bytes(12)),
                    "corrupt_safetensors"),
        "gap": (safetensors({"a": entry, "b": {**entry, "data_offsets": [12, 20]}}, bytes(20)), "corrupt_safetensors"),
        "lower-case-dtype": (safetensors({"a": {**entry, "dtype": "f32"}}, bytes(8)), "unsupported_dtype"),
        "dtype-of-code": (safetensors({"a": {**entry, "dtype": "__import__('os')"}}, bytes(8)), "unsupported_dtype"),
        "complex": (safetensors({"a": {**entry, "dtype": "C64", "shape": [1]}}, bytes(8)), "unsupported_dtype"),
        "path-as-name-of-nothing": (safetensors({"../../etc/passwd": []}), "corrupt_safetensors"),
        "bidirectional-name": (safetensors({"\u202eweight": {**entry, "shape": [9]}}, bytes(8)), "corrupt_safetensors"),
        "lone-surrogate": (safetensors(b'{"\\ud800": 1}'), "corrupt_safetensors"),
        "mixed-dtypes-overlap": (safetensors({"a": entry, "b": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}},
                                             bytes(8)), "corrupt_safetensors"),
        "png-inside": (struct.pack("<Q", 8) + _PNG_HEAD, "unknown_checkpoint_format"),
        "nan-f32": (_floats("F32", 0x3F800000, 0x7FC00000), "non_finite_weights"),
        "signalling-nan": (_floats("F32", 0x7F800001), "non_finite_weights"),
        "infinity-f32": (_floats("F32", 0x7F800000), "non_finite_weights"),
        "minus-infinity-f32": (_floats("F32", 0xFF800000), "non_finite_weights"),
        "nan-f16": (_floats("F16", 0x7E00), "non_finite_weights"),
        "infinity-f16": (_floats("F16", 0xFC00), "non_finite_weights"),
        "nan-bf16": (_floats("BF16", 0x7FC0), "non_finite_weights"),
        "nan-f64": (_floats("F64", 0x7FF8 << 48), "non_finite_weights"),
    }  # fmt: skip
    return [
        *from_rows(checkpoints.test_a_damaged_or_absurd_safetensors_file_is_refused, "safetensors"),
        *(case(f"safetensors-{name}", "safetensors", data, *code.split()) for name, (data, code) in odd.items()),
    ]


def _tower(depth: int) -> object:
    tower: object = 0
    for _ in range(depth):
        tower = (tower,)
    return tower


def _cycle() -> object:
    loop: dict[str, object] = {}
    loop["loop"] = [loop]
    return loop


def torch_cases() -> list[Case]:
    """Archives, pickles and tensors of torch.save that no state dict needs."""
    values = _values_of_python()
    good = torch_bytes()
    raw = _raw_torch(good)
    base = checkpoints
    return [
        *from_rows(base.test_a_damaged_or_odd_archive_is_refused, "torch"),
        *(
            case(f"torch-objects-{index}", "torch", torch_bytes(value), code)
            for index, (value, code) in enumerate(rows(base.test_other_tensors_and_objects_are_refused))
        ),
        *(
            case(f"torch-hand-made-{index}", "torch", with_pickle(data), code)
            for index, (data, code) in enumerate(rows(base.test_hand_made_pickles_are_refused))
        ),
        *(case(f"torch-{name}", "torch", _saved(value), *codes.split()) for name, (value, codes) in values.items()),
        *(case(f"torch-{name}", "torch", data, *codes.split()) for name, (data, codes) in raw.items()),
        *zips.cases("torch", lambda: checkpoints.members_of(good)),
    ]


def _values_of_python() -> dict[str, tuple[object, str]]:
    """What torch.save is given. torch warns that some kinds of tensors are young."""
    state = {"model": STATE}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "nan": ({"a": torch.tensor([1.0, float("nan")])}, "non_finite_weights"),
            "infinity-half": ({"a": torch.tensor([float("inf")]).half()}, "non_finite_weights"),
            "nan-bfloat16": ({"a": torch.tensor([float("nan")]).bfloat16()}, "non_finite_weights"),
            "two-state-dicts": ({"model": STATE, "net": STATE}, "several_state_dicts"),
            "no-tensors": ({"epoch": 3}, "no_state_dict"),
            "list-of-tensors": ([torch.ones(2)], "no_state_dict"),
            "number": (7, "no_state_dict"),
            "empty": ({}, "no_state_dict"),
            "numbers-as-keys": ({1: torch.ones(2)}, "no_state_dict"),
            "meta": ({"a": torch.empty(2**40, device="meta")}, "unsupported_tensor"),
            "sparse-csr": ({"a": torch.eye(3).to_sparse_csr()}, "unsupported_tensor"),
            "sparse-empty-huge": ({"a": torch.sparse_coo_tensor(size=(2**40, 2**20))}, "unsupported_tensor"),
            "quantised": ({"a": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}, "unsupported_tensor"),
            "complex": ({"a": torch.ones(2, dtype=torch.complex128)}, "unsupported_tensor"),
            "stride-0-matrix": ({"a": torch.ones(1, 1).expand(2**20, 2**19)}, "tensor_exceeds_storage"),
            "stride-0-row": ({"a": torch.ones(8).expand(2**30, 8)}, "tensor_exceeds_storage"),
            "self-overlap": ({"a": torch.arange(9.0).unfold(0, 8, 1).expand(2, 8)}, "tensor_exceeds_storage"),
            "empty-huge": ({"a": torch.empty(2**30, 0, 2**30)}, "absurd_tensor_shape"),
            "seventeen-dimensions": ({"a": torch.ones([1] * 17)}, "absurd_tensor_shape"),
            "views-of-one": ({str(i): torch.ones(4096).narrow(0, 0, 4000 + i) for i in range(2)}
                             | {"x": (base := torch.ones(2000))} | {f"x{i}": base[i:] for i in range(50)},
                             "tensor_exceeds_storage"),
            "cycle": ({**state, "x": _cycle()}, "checkpoint_too_complex"),
            "deep-tuples": ({**state, "x": _tower(60)}, "checkpoint_too_complex"),
            "set": ({**state, "x": frozenset("ab")}, "pickled_module"),
            "complex-number": ({**state, "x": 1j}, "pickled_module"),
            "function": ({**state, "x": len}, "pickled_module"),
            "class": ({**state, "x": dict}, "pickled_module"),
            "path": ({**state, "x": Path("a")}, "pickled_module"),
            "generator": ({**state, "x": np.random.default_rng(0)}, "pickled_module"),
            "optimizer-object": ({**state, "x": torch.optim.SGD([torch.ones(1)], 0.1)}, "pickled_module"),
            "structured-array": ({**state, "x": np.zeros(2, "i4,f4")}, "corrupt_checkpoint"),
            "object-array": ({**state, "x": np.array([None, 1])}, "corrupt_checkpoint"),
            "dates": ({**state, "x": np.zeros(2, "M8[s]")}, "corrupt_checkpoint"),
            "random-state": ({**state, "x": torch.Generator()}, "unsupported_tensor pickled_module unsupported_pickle"),
        }  # fmt: skip


def _raw_torch(good: bytes) -> dict[str, tuple[bytes, str]]:
    """Bytes around and inside of a good archive."""
    return {
        **{f"cut-to-{share}-of-8": (good[: len(good) * share // 8], "corrupt_archive") for share in range(1, 8)},
        "wrong-magic": (b"PK\5\6" + good[4:], "unknown_checkpoint_format"),
        "gif-before": (b"GIF89a;" + good, "unknown_checkpoint_format"),
        "png-before": (image() + good, "unknown_checkpoint_format"),
        "png-behind": (good + image(), "corrupt_archive"),
        "seven-zip": (b"7z\xbc\xaf\x27\x1c" + bytes(40), "unknown_checkpoint_format"),
        "gzip": (b"\x1f\x8b\x08" + bytes(40), "unknown_checkpoint_format"),
        "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(600), "unknown_checkpoint_format"),
        "elf": (b"\x7fELF" + bytes(600), "unknown_checkpoint_format"),
        "script": (b"#!/bin/sh\nexit\n", "unknown_checkpoint_format"),
        "npz": (zips.archive([zips.Entry(b"images.npy", b"\x93NUMPY")]), "unknown_archive_member"),
        "class-folders": (zips.archive([zips.Entry(b"cat/1.png", image())]), "unknown_archive_member"),
        "word-file": (zips.archive([zips.Entry(b"[Content_Types].xml", b"<a/>")]), "unknown_archive_member"),
        "storage-named-with-letters": (zips.archive([zips.Entry(b"archive/data.pkl", b"\x80\x02}."),
                                                    zips.Entry(b"archive/data/0x1", b"x")]), "unknown_archive_member"),
        "bidirectional-name": (zips.archive([zips.Entry(b"archive/data.pkl", b"\x80\x02}."),
                                             zips.Entry("archive/\u202elkp.atad".encode(), flags=zips.UTF8)]),
                               "unknown_archive_member"),
        "long-pickle": (with_pickle(b"\x80\x02" + b"N0" * 1_100_000 + b"N."),
                        "unsupported_pickle checkpoint_too_complex"),
        "many-items": (with_pickle(b"\x80\x02]" + b"(" + b"K\1" * 1_100_000 + b"e."), "checkpoint_too_complex"),
        "memo-never-set": (with_pickle(b"\x80\x02j\xff\xff\xff\x7f."), "corrupt_checkpoint"),
        "memo-far-away": (with_pickle(b"\x80\x02Nr\xff\xff\xff\x7f."), "no_state_dict corrupt_checkpoint"),
        "text-of-4-gib": (with_pickle(b"\x80\x02X\xff\xff\xff\xff"), "corrupt_checkpoint"),
        "bytes-of-exabytes": (with_pickle(b"\x80\x04\x8e" + b"\xff" * 8), "corrupt_checkpoint unsupported_pickle"),
        "long-number": (with_pickle(b"\x80\x02\x8b\xff\xff\xff\x7f."), "corrupt_checkpoint"),
        "decimal-number": (with_pickle(b"\x80\x02I" + b"9" * 5000 + b"\n."), "corrupt_checkpoint unsupported_pickle"),
        "extension-code": (with_pickle(b"\x80\x02\x82\x01."), "unsupported_pickle"),
        "out-of-band-buffer": (with_pickle(b"\x80\x05\x97."), "unsupported_pickle"),
        "text-protocol": (with_pickle(b"(dp0\n."), "unsupported_pickle"),
        "no-stop": (with_pickle(b"\x80\x02}"), "corrupt_checkpoint"),
        "storage-in-a-text": (with_pickle(b"\x80\x02Vstorage\nQ."), "unsupported_pickle corrupt_checkpoint"),
    }  # fmt: skip


def _saved(value: object) -> Callable[[Path], bytes]:
    def build(_: Path) -> bytes:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch_bytes(value)

    return build


@functools.cache
def exported() -> dict[str, bytes]:
    """The members of a good program, made once."""
    torch.manual_seed(1)
    with tempfile.TemporaryDirectory() as folder:
        return pt2.members_of(pt2.export(pt2.Small().eval(), Path(folder) / "small.pt2").read_bytes())


Edit = Callable[[dict[str, Any]], object]


def _edited(member: str, edit: Edit) -> Callable[[Path], bytes]:
    def build(_: Path) -> bytes:
        document = json.loads(exported()[member])
        edit(document)
        return pt2.zipped({**exported(), member: json.dumps(document).encode()})

    return build


def _replaced(members: dict[str, bytes | None]) -> Callable[[Path], bytes]:
    return lambda _: pt2.zipped({name: data for name, data in {**exported(), **members}.items() if data is not None})


def _sample_inputs(marker: Path) -> bytes:
    pickled = pickles.in_torch_zip(pickles.body(pickles.CALLS["os-mkdir"], marker))
    return pt2.zipped({**exported(), "data/sample_inputs/model.pt": pickled})


def _pickled_weights(marker: Path) -> bytes:
    pickled = pickles.in_torch_zip(pickles.body(pickles.CALLS["os-mkdir"], marker))
    return pt2.zipped({**exported(), "data/weights/model.pt": pickled})


def _spec_edit(specification: object) -> Edit:
    def edit(document: dict[str, Any]) -> None:
        document["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = specification

    return edit


def pt2_cases() -> list[Case]:
    """Programs with more in them than data, or with data that lie: what is dangerous is refused by its presence."""
    archive, document, graph = test_pt2_archive, test_pt2_document, test_pt2_graph
    found = [
        case("pt2-code-in-sample-inputs", "pt2", _sample_inputs, NEUTRALISED, carries_code=True),
        case("pt2-code-in-pickled-weights", "pt2", _pickled_weights, "old_export_layout", carries_code=True),
        case("pt2-nan", "pt2", _replaced({"data/weights/weight_0": b"\xff" * 864}), "non_finite_weights"),
        *(
            case(f"pt2-json-{name}", "pt2", _replaced({pt2.MODEL: data}), *codes.split())
            for name, data, codes in (
                ("not-finite", b'{"a": Infinity}', "corrupt_program"),
                ("huge-number", b'{"a": ' + b"1" * 5000 + b"}", "corrupt_program"),
                ("deep-objects", b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "corrupt_program"),
                ("utf-16", '{"a": 1}'.encode("utf-16"), "corrupt_program"),
                ("cut", b'{"graph_module": {', "corrupt_program"),
                ("pickle", b"\x80\x02}.", "corrupt_program"),
            )
        ),
        case("pt2-folder-of-models", "pt2", _replaced({"models/../models/x.json": b"{}"}), "archive_path_refused"),
        case("pt2-shared-library", "pt2", _replaced({"data/aotinductor/a/b.so": b"\x7fELF"}), "compiled_package"),
    ]
    for test, wrap in (
        (archive.test_a_member_that_no_classifier_needs_or_a_missing_one_is_refused, _replaced),
        (archive.test_a_tensor_that_is_not_plain_and_whole_is_refused, functools.partial(_edited, pt2.WEIGHTS)),
        (document.test_what_is_more_than_data_is_refused, functools.partial(_edited, pt2.MODEL)),
        (graph.test_an_argument_that_is_no_tensor_and_no_number_is_refused, functools.partial(_edited, pt2.MODEL)),
        (graph.test_other_than_images_in_and_logits_out_is_refused, functools.partial(_edited, pt2.MODEL)),
    ):
        name = test.__name__.removeprefix("test_")
        found += [case(f"pt2-{name}-{index}", "pt2", wrap(what), code) for index, (what, code) in enumerate(rows(test))]
    found += [
        case(f"pt2-operator-{index}", "pt2", _edited(pt2.MODEL, graph.retarget(target)), code)
        for index, (target, code) in enumerate(rows(graph.test_a_stranger_among_the_operators_is_refused))
    ]
    found += [
        case(f"pt2-expression-{index}", "pt2", _edited(pt2.MODEL, document.symbol(text)), "program_symbolic_expression")
        for index, (text,) in enumerate(_single(document.test_any_other_expression_is_refused_wherever_it_stands))
    ]
    found += [
        case(f"pt2-tree-{index}", "pt2", _edited(pt2.MODEL, _spec_edit(text)), "program_tree_specification",
             "corrupt_program")
        for index, (text,) in enumerate(_single(document.test_a_tree_of_other_types_is_refused))
    ]  # fmt: skip
    found += [
        case(f"pt2-writes-{name}", "pt2", _edited(pt2.MODEL, graph.write_into(name)), "program_writes_weight")
        for (name,) in _single(graph.test_writing_into_a_weight_or_the_input_is_refused_through_views)
    ]
    return found + zips.cases("pt2", lambda: {f"small/{name}": data for name, data in exported().items()})


def _single(test: Callable[..., object]) -> list[tuple[Any, ...]]:
    """Rows of a test of one parameter, whose only value is not in a tuple."""
    (mark,) = [mark for mark in test.pytestmark if mark.name == "parametrize"]
    return [(value,) for value in mark.args[1]]


def _spoilt(spoil: Callable[[ModelProto], object]) -> Callable[[Path], bytes]:
    def build(_: Path) -> bytes:
        model = onnx.good()
        spoil(model)
        return bytes(model.SerializeToString())

    return build


def _outside(location: str) -> Callable[[ModelProto], None]:
    return lambda model: onnx.external(model, location)


def _values(kind: int, field: str, *values: float) -> Callable[[ModelProto], None]:
    def spoil(model: ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_type = kind
        getattr(tensor, field).extend(values * (108 // len(values)))

    return spoil


def _domain(name: str, operator: str) -> Callable[[ModelProto], None]:
    def spoil(model: ModelProto) -> None:
        model.graph.node[0].domain, model.graph.node[0].op_type = name, operator
        model.opset_import.append(helper.make_opsetid(name, 1))

    return spoil


def onnx_cases() -> list[Case]:
    """Models with graphs, paths, domains or sizes that no classifier needs."""
    spoils: dict[str, tuple[Callable[[ModelProto], object], str]] = {
        f"{code}-{spoil.__name__}": (spoil, code) for code, spoils in onnx.SPOILT.items() for spoil in spoils
    }
    for name, location in {
        "absolute": "/etc/passwd", "parent": "../../x", "device": "/dev/zero", "process": "/proc/self/environ",
        "empty": "", "own-name": "weights.bin", "null": "a\0b", "url": "file:///etc/passwd", "share": "\\\\host\\x",
        "drive": "C:\\x", "hidden-parent": "a/./../../x", "unicode": "\u2024\u2024/x",
    }.items():  # fmt: skip
        spoils[f"external-{name}"] = (_outside(location), "onnx_external_data")
    for name, domain, operator in (
        ("python", "ai.onnx.contrib", "PyOp"), ("microsoft", "com.microsoft", "FusedConv"),
        ("training", "ai.onnx.preview.training", "Adam"), ("classic", "ai.onnx.ml", "TreeEnsembleClassifier"),
        ("torch", "org.pytorch.aten", "ATen"), ("blank", " ", "Conv"), ("long", "d" * 50_000, "Conv"),
    ):  # fmt: skip
        spoils[f"domain-{name}"] = (_domain(domain, operator), "onnx_custom_domain")
    spoils |= {
        "nan-in-floats": (_values(1, "float_data", float("nan")), "non_finite_weights"),
        "infinity-in-doubles": (_values(11, "double_data", float("-inf")), "non_finite_weights"),
        "complex-weights": (_values(TensorProto.COMPLEX64, "float_data", 1.0, 1.0), "unsupported_dtype"),
        "loop": (
            lambda m: m.graph.node.add(op_type="Loop", input=["x"], output=["q"]).attribute.append(
                helper.make_attribute("body", helper.make_graph([], "b", [], []))
            ),
            "onnx_subgraph",
        ),
        "bidirectional-operator": (lambda m: setattr(m.graph.node[0], "op_type", "\u202evnoC"), "onnx_operator"),
    }
    good = bytes(onnx.good().SerializeToString())
    raw: dict[str, tuple[bytes, str]] = {
        **{
            f"cut-to-{share}-of-8": (good[: len(good) * share // 8],
                                     "corrupt_onnx onnx_opset onnx_inputs_outputs unknown_checkpoint_format")
            for share in range(1, 8)
        },
        "second-graph": (good + onnx.field(7, onnx.field(2, b"again")), "corrupt_onnx"),
        "zip-behind": (good + torch_bytes(), "corrupt_onnx onnx_too_complex"),
        "zeros-behind": (good + bytes(50), "corrupt_onnx"),
        "wrong-magic": (b"\x0a" + good[1:], "unknown_checkpoint_format"),
        "many-nodes": (onnx.HEAD + onnx.field(7, b"\x0a\0" * 50_001) + onnx.OPSET, "onnx_too_complex"),
        "many-tensors": (onnx.HEAD + onnx.field(7, b"\x2a\0" * 20_001) + onnx.OPSET, "onnx_too_complex"),
        "many-fields": (onnx.HEAD + onnx.field(7, onnx.field(1, b"\x2a\0" * 1_000_001)) + onnx.OPSET,
                        "onnx_too_complex"),
        "long-note": (onnx.HEAD + onnx.field(6, b"n" * (32 * 2**20 + 1)) + onnx.OPSET, "onnx_too_complex"),
        "deep-types": (onnx.HEAD + onnx.field(7, onnx.field(11, onnx.field(2, _nested_types()))) + onnx.OPSET,
                       "onnx_too_complex"),
        **{
            f"no-message-{index}": (data, "corrupt_onnx")
            for index, (data,) in enumerate(_single(onnx.test_bytes_that_are_no_message_are_refused))
        },
    }  # fmt: skip
    return [
        *(case(f"onnx-{name}", "onnx", _spoilt(spoil), *codes.split()) for name, (spoil, codes) in spoils.items()),
        *(case(f"onnx-{name}", "onnx", data, *codes.split()) for name, (data, codes) in raw.items()),
    ]


def _nested_types() -> bytes:
    kind = b""
    for _ in range(100):
        kind = onnx.field(4, onnx.field(1, kind))
    return kind
