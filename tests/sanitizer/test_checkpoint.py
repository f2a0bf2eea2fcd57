"""Checkpoints: what is read, how it is matched, and that what is written is what was read."""

import io
import json
import struct
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from worker.sanitizer.checkpoint import match, read
from worker.sanitizer.refusals import (
    ArchitectureMismatchError,
    CheckpointRefusedError,
    NonFiniteWeightsError,
    TiedTensorsDisagreeError,
)


def weights() -> OrderedDict[str, torch.Tensor]:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).state_dict()


def save(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointRefusedError) as caught:
        read(path)
    assert caught.value.message
    return caught.value.code


@pytest.mark.parametrize(
    ("wrap", "wrapper"),
    [
        (lambda state: state, None),
        (lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"lr": [0.1], "m": torch.ones(2)}}, "state_dict"),
        (lambda state: {"model": state, "milestones": Counter([1, 1]), "shape": torch.Size([3])}, "model"),
        (lambda state: {"net": state, "acc": 93.5}, "net"),
        (lambda state: {"model_state_dict": state, "blob": b"\x00\xff", "none": None}, "model_state_dict"),
        (lambda state: {"weights": state, "dtype": torch.float16, "device": torch.device("cpu")}, "weights"),
        (lambda state: {"model_name": "preactresnet18", "num_classes": 10, "model": state, "clean_data": "x"}, "model"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_and_prefixes_are_undone_and_come_back(tmp_path, wrap, wrapper, prefix):
    state = OrderedDict((prefix + name, tensor) for name, tensor in weights().items())
    path = save(tmp_path / "in.pt", wrap(state))
    checkpoint = read(path)
    assert (checkpoint.format, checkpoint.wrapper, checkpoint.prefix) == ("torch_zip", wrapper, prefix)
    assert list(checkpoint.tensors) == list(weights())
    pruned = checkpoint.tensors["0.weight"].clone()
    pruned[1] = 0
    checkpoint.write(tmp_path / "out.pt", {"0.weight": pruned})
    before = torch.load(path, weights_only=True)
    after = torch.load(tmp_path / "out.pt", weights_only=True)
    if wrapper is not None:
        rest_before = {key: value for key, value in before.items() if key != wrapper}
        rest_after = {key: value for key, value in after.items() if key != wrapper}
        assert repr(rest_before) == repr(rest_after)
        assert list(before) == list(after)
        before, after = before[wrapper], after[wrapper]
    assert list(before) == list(after)
    assert type(before) is type(after)
    for name in before:
        expected = pruned if name == prefix + "0.weight" else before[name]
        assert bytes_of(after[name]) == bytes_of(expected)
        assert after[name].dtype == expected.dtype


def test_an_attack_result_with_numpy_arrays_comes_back_whole(tmp_path):
    state = {
        "original_index_array": np.arange(6).reshape(2, 3),
        "poison_indicator": np.array([True, False]),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "data_dict": {np.int64(4): {"path": "bd/4.png", "other_info": [np.int64(1), np.float32(0.5)]}},
    }
    path = save(tmp_path / "in.pt", {"model_name": "m", "num_classes": 10, "model": weights(), "bd_test": state})
    checkpoint = read(path)
    checkpoint.write(tmp_path / "out.pt", {"0.bias": torch.zeros(4)})
    after = torch.load(tmp_path / "out.pt", weights_only=False)
    assert after["model"]["0.bias"].tolist() == [0] * 4
    assert repr(after["bd_test"]) == repr(state)
    for name in ("original_index_array", "poison_indicator", "fortran"):
        assert type(after["bd_test"][name]) is np.ndarray
        assert after["bd_test"][name].dtype == state[name].dtype
        assert after["bd_test"][name].flags.f_contiguous == state[name].flags.f_contiguous
    assert type(next(iter(after["bd_test"]["data_dict"]))) is np.int64
    assert read(tmp_path / "out.pt").wrapper == "model"


def test_some_keys_with_a_prefix_are_left_alone(tmp_path):
    checkpoint = read(save(tmp_path / "in.pt", {"module.a": torch.ones(1), "b": torch.ones(1)}))
    assert list(checkpoint.tensors) == ["module.a", "b"]


def test_metadata_parameters_and_requires_grad_survive(tmp_path):
    state = weights()
    state["p"] = torch.nn.Parameter(torch.ones(2))
    state["q"] = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    checkpoint = read(save(tmp_path / "in.pt", state))
    checkpoint.write(tmp_path / "out.pt", {"p": torch.zeros(2)})
    after = torch.load(tmp_path / "out.pt", weights_only=True)
    assert after._metadata == state._metadata
    assert isinstance(after["p"], torch.nn.Parameter)
    assert after["p"].requires_grad
    assert after["p"].tolist() == [0, 0]
    assert isinstance(after["q"], torch.nn.Parameter)
    assert not after["q"].requires_grad


@pytest.mark.parametrize("same_object", [True, False])
def test_ties_stay_ties(tmp_path, same_object):
    base = torch.arange(6.0)
    state = {"a": base, "b": base if same_object else base[:], "part": base[2:4], "alone": torch.ones(1)}
    checkpoint = read(save(tmp_path / "in.pt", state))
    new = torch.tensor([0.0, 1, 2, 9, 4, 5])
    checkpoint.write(tmp_path / "out.pt", {"a": new, "b": new, "part": new[2:4]})
    after = torch.load(tmp_path / "out.pt", weights_only=True)
    assert after["a"].tolist() == after["b"].tolist() == new.tolist()
    assert after["part"].tolist() == [2, 9]
    assert after["a"].data_ptr() == after["b"].data_ptr() == after["part"].data_ptr() - 8
    with pytest.raises(TiedTensorsDisagreeError):
        checkpoint.write(tmp_path / "out2.pt", {"a": new, "b": base})
    assert not (tmp_path / "out2.pt").exists()
    assert not (tmp_path / "out2.pt.part").exists()


def test_reading_and_writing_change_neither_the_upload_nor_the_checkpoint(tmp_path):
    path = save(tmp_path / "in.pt", weights())
    original = path.read_bytes()
    checkpoint = read(path)
    before = {name: bytes_of(tensor) for name, tensor in checkpoint.tensors.items()}
    checkpoint.write(tmp_path / "out.pt", {"0.weight": torch.zeros(4, 3, 3, 3)})
    assert path.read_bytes() == original
    assert {name: bytes_of(tensor) for name, tensor in checkpoint.tensors.items()} == before


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_the_same_tensors_give_the_same_bytes(tmp_path, suffix):
    path = tmp_path / f"in.{suffix}"
    save_file(weights(), path) if suffix == "safetensors" else save(path, {"model": weights(), "epoch": 1})
    for name in ("x", "y"):
        read(path).write(tmp_path / name, {"0.bias": torch.zeros(4)})
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_a_non_contiguous_tensor_keeps_its_values(tmp_path):
    state = {"a": torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)}
    checkpoint = read(save(tmp_path / "in.pt", state))
    checkpoint.write(tmp_path / "out.pt", {"a": state["a"] * 2})
    after = torch.load(tmp_path / "out.pt", weights_only=True)["a"]
    assert torch.equal(after, state["a"] * 2)
    assert after.stride() == state["a"].stride()


def test_safetensors_keeps_order_metadata_and_untouched_bits(tmp_path):
    path = tmp_path / "in.safetensors"
    state = {
        **{name: tensor.contiguous() for name, tensor in weights().items()},
        "half": torch.ones(3, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4),
        "flag": torch.tensor([True, False]),
    }
    save_file(state, path, metadata={"format": "pt", "note": "é"})
    checkpoint = read(path)
    assert checkpoint.format == "safetensors"
    assert {name: bytes_of(t) for name, t in checkpoint.tensors.items()} == {n: bytes_of(t) for n, t in state.items()}
    checkpoint.write(tmp_path / "same", dict(checkpoint.tensors))
    assert (tmp_path / "same").read_bytes() == path.read_bytes()
    checkpoint.write(tmp_path / "out", {"0.bias": torch.full((4,), 7.0)})
    after = load_file(tmp_path / "out")
    assert after.pop("0.bias").tolist() == [7.0] * 4
    assert all(bytes_of(after[name]) == bytes_of(state[name]) for name in after)
    header = struct.unpack("<Q", path.read_bytes()[:8])[0] + 8
    assert (tmp_path / "out").read_bytes()[:header] == path.read_bytes()[:header]


def test_unaligned_safetensors_are_read(tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    header += b" " * (1 - len(header) % 4 + 4)
    path = tmp_path / "in"
    path.write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<2f", 1, 2))
    assert (8 + len(header)) % 4
    assert read(path).tensors["a"].tolist() == [1, 2]


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_weights_are_named(tmp_path, suffix, bad):
    state = {**weights(), "bad.one": torch.tensor([[1.0, bad]])}
    path = tmp_path / "in"
    save_file(state, path) if suffix == "safetensors" else save(path, state)
    with pytest.raises(NonFiniteWeightsError, match=r"bad\.one") as caught:
        read(path)
    assert caught.value.tensor == "bad.one"


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ({"epoch": 1}, "no_state_dict"),
        ({}, "no_state_dict"),
        ([torch.ones(1)], "no_state_dict"),
        (torch.ones(1), "no_state_dict"),
        ({"model": {"a": torch.ones(1)}, "net": {"a": torch.ones(1)}}, "several_state_dicts"),
        ({"a": torch.ones(1), "b": 3}, "no_state_dict"),
        ({1: torch.ones(1)}, "no_state_dict"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path, value, code):
    assert refusal(save(tmp_path / "in", value)) == code


def test_an_equal_architecture_matches_and_half_precision_is_floating(tmp_path):
    state = weights()
    state["0.weight"] = state["0.weight"].half()
    checkpoint = read(save(tmp_path / "in", state))
    assert list(match(checkpoint, weights())) == list(state)


def test_missing_batch_counters_are_filled_in(tmp_path):
    state = weights()
    del state["1.num_batches_tracked"]
    loadable = match(read(save(tmp_path / "in", state)), weights())
    torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).load_state_dict(loadable, strict=True)


def test_a_mismatch_names_five_and_counts_all(tmp_path):
    expected = {**{f"layer{i}": torch.ones(1) for i in range(7)}, "shape": torch.ones(2, 3), "kind": torch.ones(1)}
    path = save(
        tmp_path / "in", {"shape": torch.ones(3, 2), "kind": torch.ones(1, dtype=torch.int64), "odd": torch.ones(1)}
    )
    with pytest.raises(ArchitectureMismatchError) as caught:
        match(read(path), expected)
    error = caught.value
    assert (error.num_missing, error.num_unexpected, error.num_different) == (7, 1, 2)
    assert "shape is floating (3, 2), expected floating (2, 3)" in error.message
    assert "kind is integer (1,), expected floating (1,)" in error.message
    assert [f"layer{i}" in error.message for i in range(7)] == [True, True, True, False, False, False, False]


def test_an_output_is_loadable_by_safetensors_and_torch_from_memory(tmp_path):
    checkpoint = read(save(tmp_path / "in", weights()))
    checkpoint.write(tmp_path / "out", dict(checkpoint.tensors))
    loaded = torch.load(io.BytesIO((tmp_path / "out").read_bytes()), weights_only=True)
    assert all(bytes_of(loaded[name]) == bytes_of(tensor) for name, tensor in weights().items())
    assert list(read(tmp_path / "out").tensors) == list(weights())
