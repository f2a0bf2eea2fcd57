"""What was touched is written and the rest keeps its bits; digests are those of the bytes."""

import hashlib

import pytest
import torch

from worker.sanitizer.evidence import changed, file_digest, tensor_digests, tensor_sha256


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_only_touched_elements_change_and_the_dtype_stays(dtype):
    original = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = original.float()
    after = before.clone()
    after[2] = 0
    after[4, 1] = 0.123456789
    written = changed({"w": original}, {"w": before}, {"w": after})["w"]
    assert written.dtype == dtype
    touched = torch.zeros(6, 5, dtype=torch.bool)
    touched[2], touched[4, 1] = True, True
    assert torch.equal(written[~touched], original[~touched])
    assert bool((written[2] == 0).all())
    assert written[4, 1] == torch.tensor(0.123456789, dtype=torch.float32).to(dtype)


def test_a_float64_elements_low_bits_survive_where_float32_has_none():
    original = torch.tensor([1.0 + 2.0**-40, 2.0], dtype=torch.float64)
    before = original.float()
    after = torch.tensor([1.0, 0.0])
    written = changed({"w": original}, {"w": before}, {"w": after})["w"]
    assert written.tolist() == [1.0 + 2.0**-40, 0.0]


def test_untouched_tensors_are_not_written_and_neither_are_those_that_the_network_lacks():
    same, other = torch.ones(3), torch.arange(3)
    originals = {"same": same, "touched": same, "not_in_network": other}
    network = {"same": same, "touched": same}
    written = changed(originals, network, {"same": same.clone(), "touched": torch.zeros(3)})
    assert set(written) == {"touched"}


def test_the_originals_are_left_alone():
    original = torch.ones(3)
    changed({"w": original}, {"w": original.clone()}, {"w": torch.zeros(3)})
    assert original.tolist() == [1, 1, 1]


def test_a_digest_is_that_of_the_elements_bytes():
    tensor = torch.arange(12, dtype=torch.float16).view(3, 4)
    assert tensor_sha256(tensor) == hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
    assert tensor_sha256(tensor.t()) == hashlib.sha256(tensor.numpy().T.tobytes("C")).hexdigest()
    assert tensor_sha256(torch.tensor(7)) == hashlib.sha256((7).to_bytes(8, "little")).hexdigest()


def test_the_digests_say_which_tensors_changed():
    before = {"a": torch.ones(2), "b": torch.ones(2), "zero": torch.zeros(1)}
    after = {"a": torch.ones(2), "b": torch.tensor([1.0, 0.0]), "zero": -torch.zeros(1)}
    digests = {digest.name: digest for digest in tensor_digests(before, after)}
    assert [name for name, digest in digests.items() if digest.changed] == ["b", "zero"]
    assert all((digest.sha256_before != digest.sha256_after) == digest.changed for digest in digests.values())
    assert digests["b"].sha256_after == hashlib.sha256(after["b"].numpy().tobytes()).hexdigest()


def test_a_files_digest_is_that_of_all_its_chunks(tmp_path):
    data = bytes(range(256)) * 9000  # more than two chunks
    (tmp_path / "file").write_bytes(data)
    digest = file_digest("clean_set", "npz", tmp_path / "file")
    assert (digest.size_bytes, digest.sha256) == (len(data), hashlib.sha256(data).hexdigest())
