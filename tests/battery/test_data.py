from __future__ import annotations

import gzip
import struct

import pytest
import torch

from benchmarks.battery import data


def write_idx(path, shape, values, kind=0x08):
    header = struct.pack(">HBB", 0, kind, len(shape)) + struct.pack(f">{len(shape)}I", *shape)
    path.write_bytes(gzip.compress(header + bytes(values)))


def test_an_idx_file_is_read_in_row_major_order(tmp_path):
    write_idx(tmp_path / "a.gz", (2, 2, 3), range(12))
    assert torch.equal(data.read_idx(tmp_path / "a.gz"), torch.arange(12, dtype=torch.uint8).view(2, 2, 3))


def test_an_idx_file_of_another_type_or_length_is_refused(tmp_path):
    write_idx(tmp_path / "floats.gz", (4,), range(4), kind=0x0D)
    write_idx(tmp_path / "short.gz", (5,), range(4))
    for name in ("floats.gz", "short.gz"):
        with pytest.raises(ValueError, match=r"idx file|reshape"):
            data.read_idx(tmp_path / name)


def test_fashion_mnist_is_found_through_the_environment(tmp_path):
    for prefix, count in (("train", 3), ("t10k", 2)):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", (count, 28, 28), [7] * (count * 784))
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", (count,), range(count))
    dataset = data.load("fashion_mnist", {"FASHION_MNIST_DIR": str(tmp_path)})
    assert dataset.train_images_NCHW.shape == (3, 1, 28, 28)
    assert dataset.test_labels_N.tolist() == [0, 1]
    assert dataset.test_labels_N.dtype == torch.int64


def test_a_missing_folder_says_which_package_has_the_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist"):
        data.load("fashion_mnist", {"FASHION_MNIST_DIR": str(tmp_path / "absent")})


def test_a_subset_is_stratified_seeded_and_without_repeats():
    labels = torch.arange(1000) % 10
    chosen = data.subset(labels, 105, seed=1)
    assert len(chosen.unique()) == 105
    assert labels[chosen].bincount().tolist() == [11] * 5 + [10] * 5
    assert torch.equal(chosen, data.subset(labels, 105, seed=1))
    assert not torch.equal(chosen, data.subset(labels, 105, seed=2))


def test_a_subset_larger_than_a_class_is_refused():
    with pytest.raises(ValueError, match="class 1 has 2"):
        data.subset(torch.tensor([0, 0, 0, 1, 1]), 6, seed=0)


def test_the_digits_split_has_no_image_on_both_sides():
    dataset = data.load("digits", {})
    train, test = dataset.train_images_NCHW.flatten(1), dataset.test_images_NCHW.flatten(1)
    assert (len(train), len(test)) == (1297, 500)
    assert not (torch.cdist(test.float(), train.float()) == 0).any()
