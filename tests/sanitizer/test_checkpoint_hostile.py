"""Hostile checkpoints, built here: each ends as a typed refusal, quickly, and nothing in them runs."""

import contextlib
import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as safetensors_bytes

from worker.sanitizer import safetensors_file
from worker.sanitizer.checkpoint import opcodes, read
from worker.sanitizer.checkpoint.tree import MAX_DEPTH
from worker.sanitizer.refusals import CheckpointRefusedError

STATE = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}


def torch_bytes(value: object = STATE, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def members_of(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def without(name: str) -> dict[str, bytes]:
    return {key: data for key, data in members_of(torch_bytes()).items() if key != name}


def with_pickle(data: bytes) -> bytes:
    return zipped({**members_of(torch_bytes()), "archive/data.pkl": data})


def safetensors(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def refusal(tmp_path: Path, data: bytes) -> str:
    path = tmp_path / "upload"
    path.write_bytes(data)
    with pytest.raises(CheckpointRefusedError) as caught:
        read(path)
    assert len(caught.value.message) > 20
    assert "Traceback" not in caught.value.message
    return caught.value.code


class Toucher:
    """Pickles to a call that creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("shape", ["zip", "legacy", "bare"])
def test_a_pickle_that_would_touch_a_file_does_not(tmp_path, protocol, shape):
    target = tmp_path / "touched"
    value = {"model": STATE, "extra": Toucher(target)}
    if shape == "bare":
        data = pickle.dumps({"extra": Toucher(target)}, protocol=protocol)
    else:
        data = torch_bytes(value, pickle_protocol=protocol, _use_new_zipfile_serialization=shape == "zip")
    codes = {"bare": "bare_pickle", "legacy": "legacy_checkpoint"}
    code = refusal(tmp_path, data)
    assert code == codes.get(shape, "pickled_module" if protocol == 2 else "unsupported_pickle")
    assert not target.exists()
    # The same file does touch it in the hands of a loader that trusts it, so the test can fail.
    torch.load(io.BytesIO(data), weights_only=False) if shape != "bare" else pickle.loads(data)
    assert target.exists()


def test_a_pickled_module_is_refused_with_the_name_of_its_class(tmp_path):
    path = tmp_path / "upload"
    path.write_bytes(torch_bytes(torch.nn.Linear(2, 2)))
    with pytest.raises(CheckpointRefusedError, match=r"torch\.nn\.modules\.linear\.Linear.*state_dict") as caught:
        read(path)
    assert caught.value.code == "pickled_module"


def test_torchscript_and_exported_programs_are_refused_with_their_own_codes(tmp_path):
    assert refusal(tmp_path, zipped({**members_of(torch_bytes()), "archive/constants.pkl": b""})) == "torchscript"
    assert refusal(tmp_path, zipped({"m/code/__torch__.py": b"x", "m/data.pkl": b"."})) == "torchscript"
    assert refusal(tmp_path, zipped({"m/models/model.json": b"{}", "m/version": b"0"})) == "corrupt_program"


def test_old_tar_checkpoints_are_legacy(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("sys_info"))
    assert refusal(tmp_path, buffer.getvalue()) == "legacy_checkpoint"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty_upload"),
        (b"\0", "unknown_checkpoint_format"),
        (b"GIF89a" * 50, "unknown_checkpoint_format"),
        (b"PK\x03\x04", "corrupt_archive"),
        (torch_bytes()[:-30], "corrupt_archive"),
        (torch_bytes() + b"tail", "corrupt_archive"),
        (b"head" + torch_bytes(), "unknown_checkpoint_format"),
        (torch_bytes()[:100] + torch_bytes(), "corrupt_archive"),
        (zipped(members_of(torch_bytes()), zipfile.ZIP_DEFLATED), "deflated_member"),
        (zipped(members_of(torch_bytes()), zipfile.ZIP_BZIP2), "unsupported_compression"),
        (zipped({**members_of(torch_bytes()), "archive/evil.sh": b"x"}), "unknown_archive_member"),
        (zipped({**members_of(torch_bytes()), "other/data/9": b"x"}), "unknown_archive_member"),
        (zipped({**members_of(torch_bytes()), "archive/../x": b"x"}), "archive_path_refused"),
        (zipped({**members_of(torch_bytes()), "/etc/passwd": b"x"}), "archive_path_refused"),
        (zipped({**members_of(torch_bytes()), "archive/DATA.PKL": b"x"}), "duplicate_archive_member"),
        (zipped({**members_of(torch_bytes()), "archive/byteorder": b"big"}), "unsupported_byte_order"),
        (zipped({**members_of(torch_bytes()), "archive/data/0": b"short"}), "corrupt_checkpoint"),
        (zipped({**members_of(torch_bytes()), "archive/version": b"3" * 5000}), "checkpoint_too_complex"),
        (zipped(without("archive/data/1")), "corrupt_checkpoint"),
        (zipped(without("archive/data.pkl")), "unknown_archive_member"),
        (zipped({}), "unknown_checkpoint_format"),
    ],
)  # fmt: skip
def test_a_damaged_or_odd_archive_is_refused(tmp_path, data, code):
    assert refusal(tmp_path, data) == code


def test_a_member_twice_is_refused(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members_of(torch_bytes()).items():
            archive.writestr(name, data)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("archive/data.pkl", b"other")
    assert refusal(tmp_path, buffer.getvalue()) == "duplicate_archive_member"


def test_encryption_is_refused(tmp_path):
    data = bytearray(zipped(members_of(torch_bytes())))
    entry = data.index(b"PK\x01\x02")
    data[entry + 8] |= 1
    data[6] |= 1
    assert refusal(tmp_path, bytes(data)) == "encrypted_archive"


def test_members_that_overlap_are_refused(tmp_path):
    data = bytearray(zipped({"archive/data.pkl": b"x" * 200, "archive/data/0": b"y" * 100}))
    entry = data.index(b"PK\x01\x02")
    for start in (entry + 20, 18):
        data[start : start + 8] = struct.pack("<2L", 260, 260)
    assert refusal(tmp_path, bytes(data)) == "corrupt_archive"


def test_a_directory_of_a_million_entries_is_refused_before_it_is_parsed(tmp_path):
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFE, 0xFFFE, 4, 4, 0)
    assert refusal(tmp_path, b"PK\3\4" + b"PK\1\2" + end) == "archive_too_large"


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ({"a": torch.ones(1).expand(2**40)}, "tensor_exceeds_storage"),
        ({"a": torch.ones(1).expand(10**6, 10**6, 10**6)}, "absurd_tensor_shape"),
        ({"a": torch.ones(3).expand(2, 3)}, "tensor_exceeds_storage"),
        ({"a": torch.empty(0, 2**50)}, "absurd_tensor_shape"),
        ({"a": torch.eye(2).to_sparse()}, "unsupported_tensor"),
        ({"a": torch.ones(2, device="meta")}, "unsupported_tensor"),
        ({"a": torch.ones(2).to(torch.float8_e4m3fn)}, "unsupported_tensor"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "unsupported_tensor"),
        ({"model": STATE, "storage": torch.ones(2).untyped_storage()}, "unsupported_tensor"),
        ({"model": STATE, "names": {"a", "b"}}, "pickled_module"),
        ({"model": STATE, "x": np.array([{}, None])}, "corrupt_checkpoint"),
        ({"model": STATE, "x": np.array(["text"])}, "corrupt_checkpoint"),
        ({"model": STATE, "x": np.arange(3, dtype=">i4")}, "corrupt_checkpoint"),
        ({"model": STATE, "x": np.zeros(3, [("a", "i4")])}, "corrupt_checkpoint"),
        ({"model": STATE, "x": np.dtype("i4")}, "unsupported_pickle"),
        ({"model": STATE, "x": np.ndarray}, "unsupported_pickle"),
        ({"model": STATE, ("a", 1): 2}, "unsupported_pickle"),
        ({"model": STATE, "class": OrderedDict}, "unsupported_pickle"),
    ],
)
def test_other_tensors_and_objects_are_refused(tmp_path, value, code):
    assert refusal(tmp_path, torch_bytes(value)) == code


def test_many_overlapping_views_are_refused(tmp_path):
    base = torch.ones(1000)
    assert refusal(tmp_path, torch_bytes({str(i): base[i:] for i in range(20)})) == "tensor_exceeds_storage"


def test_cycles_deep_nesting_and_shared_towers_are_refused(tmp_path):
    loop: list[object] = []
    loop.append(loop)
    assert refusal(tmp_path, torch_bytes({"model": STATE, "x": loop})) == "checkpoint_too_complex"
    deep: object = 0
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    assert refusal(tmp_path, torch_bytes({"model": STATE, "x": deep})) == "checkpoint_too_complex"
    rungs: list[object] = [[]]
    for _ in range(MAX_DEPTH + 1):
        rungs.append([rungs[-1]])
    assert refusal(tmp_path, torch_bytes({"model": STATE, "x": rungs})) == "checkpoint_too_complex"


def test_a_billion_shared_references_cost_nothing(tmp_path):
    tower: object = "lol"
    for _ in range(20):
        tower = [tower] * 30
    path = tmp_path / "upload"
    path.write_bytes(torch_bytes({"model": STATE, "x": tower}))
    checkpoint = read(path)
    checkpoint.write(tmp_path / "out", {"b": torch.zeros(4)})
    assert (tmp_path / "out").stat().st_size < 10_000


def test_a_long_pickle_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(opcodes, "MAX_INSTRUCTIONS", 1000)
    assert refusal(tmp_path, torch_bytes({"model": STATE, "x": list(range(2000))})) == "checkpoint_too_complex"


PERSID = b"(X\x07\0\0\0storagectorch\n%s\nX\x01\0\0\0%sX\x03\0\0\0cpuM%stQ"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"\x80\x02.", "corrupt_checkpoint"),
        (b"\x80\x02", "corrupt_checkpoint"),
        (b"\x80\x02h\x05.", "corrupt_checkpoint"),
        (b"\x80\x02t.", "corrupt_checkpoint"),
        (b"\x80\x02}R.", "corrupt_checkpoint"),
        (b"\x80\x02NN\x85R.", "unsupported_pickle"),
        (b"\x80\x02N}b.", "unsupported_pickle"),
        (b"\x80\x02NK\x01a.", "unsupported_pickle"),
        (b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R.", "pickled_module"),
        (b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\0\0\0\0\x10\x85R.", "pickled_module"),
        (b"\x80\x02ctorch\nFloatTensor\n\x8a\x05\0\0\0\0\x10\x85R.", "unsupported_tensor"),
        (b"\x80\x02ctorch._utils\n_rebuild_qtensor\n)R.", "unsupported_tensor"),
        (b"\x80\x02c_codecs\nencode\nX\x02\0\0\0idX\x05\0\0\0rot13\x86R.", "unsupported_pickle"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "unsupported_pickle"),
        (b"\x80\x02S'\\d'\n.", "unsupported_pickle"),
        (b"\x80\x02X\xff\xff\xff\xffa.", "corrupt_checkpoint"),
        (b"\x80\x02X\x02\0\0\0\xff\xfe.", "corrupt_checkpoint"),
        (b"\x80\x02X\x01\0\0\0aQ.", "corrupt_checkpoint"),
        (b"\x80\x02" + PERSID % (b"FloatStorage", b"0", b"\x07\0") + b".", "corrupt_checkpoint"),
        (b"\x80\x02" + PERSID % (b"DoubleStorage", b"0", b"\x06\0") + b".", "corrupt_checkpoint"),
        (b"\x80\x02" + PERSID % (b"FloatStorage", b"7", b"\x06\0") + b".", "corrupt_checkpoint"),
        (b"\x80\x02" + PERSID % (b"float32", b"0", b"\x06\0") + b".", "corrupt_checkpoint"),
        (b"\x80\x02" + PERSID % (b"FloatStorage", b"0", b"\x06\0") + b".", "unsupported_pickle"),
        (b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\0\0\0itemsK\x01sb.", "unsupported_pickle"),
        (b"\x80\x02ctorch\nSize\nX\x01\0\0\0a\x85R.", "corrupt_checkpoint"),
        (b"\x80\x02ctorch\ndevice\nX\x03\0\0\0foo\x85R.", "corrupt_checkpoint"),
        (b"\x80\x02" + b"\x85".join([b")"] + [b""] * 100_000) + b".", "checkpoint_too_complex"),
    ],
)
def test_hand_made_pickles_are_refused(tmp_path, body, code):
    assert refusal(tmp_path, with_pickle(body)) == code


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (safetensors({"a": ENTRY}, b"\0" * 7), "corrupt_safetensors"),
        (safetensors({"a": ENTRY}, b"\0" * 9), "corrupt_safetensors"),
        (safetensors({"a": {**ENTRY, "shape": [3]}}, b"\0" * 8), "corrupt_safetensors"),
        (safetensors({"a": {**ENTRY, "shape": [-2]}}, b"\0" * 8), "corrupt_safetensors"),
        (safetensors({"a": {**ENTRY, "shape": [2.0]}}, b"\0" * 8), "corrupt_safetensors"),
        (safetensors({"a": {**ENTRY, "shape": [True, 2]}}, b"\0" * 8), "corrupt_safetensors"),
        (safetensors({"a": {**ENTRY, "data_offsets": [8, 0]}}, b"\0" * 8), "corrupt_safetensors"),
        (safetensors({"a": {**ENTRY, "data_offsets": [4, 12]}}, b"\0" * 12), "corrupt_safetensors"),
        (safetensors({"a": {**ENTRY, "extra": 1}}, b"\0" * 8), "corrupt_safetensors"),
        (safetensors({"a": ENTRY, "b": ENTRY}, b"\0" * 8), "corrupt_safetensors"),
        (safetensors(b'{"a": 1, "a": 1}'), "corrupt_safetensors"),
        (safetensors(b"{" + b'"a":{' * 100_000), "corrupt_safetensors"),
        (safetensors(b'{"a": ' + b"9" * 5000 + b"}"), "corrupt_safetensors"),
        (safetensors(b'{"\xff": 1}'), "corrupt_safetensors"),
        (safetensors({"__metadata__": {"a": 1}}), "corrupt_safetensors"),
        (safetensors({"__metadata__": {"a": "b"}}), "no_state_dict"),
        (safetensors({}), "no_state_dict"),
        (safetensors({"a": {**ENTRY, "dtype": "F8_E4M3", "data_offsets": [0, 2]}}, b"\0" * 2), "unsupported_dtype"),
        (safetensors({"a": {**ENTRY, "dtype": ["F32"]}}, b"\0" * 8), "unsupported_dtype"),
        (safetensors({"a": {**ENTRY, "shape": [0, 2**60], "data_offsets": [0, 0]}}), "absurd_tensor_shape"),
        (safetensors({"a": {**ENTRY, "shape": [1] * 99}}, b"\0" * 8), "absurd_tensor_shape"),
        (struct.pack("<Q", 2**62) + b"{}", "header_too_large"),
        (struct.pack("<Q", 100) + b"{}", "corrupt_safetensors"),
        (struct.pack("<Q", safetensors_file.MAX_HEADER_BYTES + 1) + b"{" * 64, "header_too_large"),
        (safetensors({str(i): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(20_002)}),
         "too_many_tensors"),
    ],
)  # fmt: skip
def test_a_damaged_or_absurd_safetensors_file_is_refused(tmp_path, data, code):
    assert refusal(tmp_path, data) == code


VALID = {
    "zip": torch_bytes({"model": STATE, "epoch": 3, "index": np.arange(3), "one": np.float32(1)}),
    "safetensors": safetensors_bytes(STATE),
}


@pytest.mark.parametrize("kind", sorted(VALID))
def test_every_truncation_is_refused(tmp_path, kind):
    for size in range(0, len(VALID[kind]), 7):
        refusal(tmp_path, VALID[kind][:size])


@pytest.mark.parametrize("kind", sorted(VALID))
@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_mutated_bytes_end_in_a_refusal_or_a_clean_read(tmp_path, kind, data):
    valid = VALID[kind]
    # Weights may change unseen; all else is structure, and most of it stands in the first and last parts.
    mutated = bytearray(valid)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(valid) - 1))
        mutated[position] = data.draw(st.sampled_from([0, 1, 0x2E, 0x51, 0x52, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    path = tmp_path / "upload"
    path.write_bytes(mutated)
    try:
        checkpoint = read(path)
    except CheckpointRefusedError:
        return
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint.tensors.values() if tensor.is_floating_point())
    checkpoint.write(tmp_path / "out", dict(checkpoint.tensors))
    assert read(tmp_path / "out").tensors.keys() == checkpoint.tensors.keys()


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_mutated_pickles_end_in_a_refusal_or_a_clean_read(tmp_path, data):
    body = bytearray(members_of(VALID["zip"])["archive/data.pkl"])
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(body)))
        body[start : start + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    path = tmp_path / "upload"
    path.write_bytes(with_pickle(bytes(body)))
    with contextlib.suppress(CheckpointRefusedError):
        read(path)
