from __future__ import annotations

import gzip
import itertools
import math
import struct

import pytest
import torch

from benchmarks.battery import data, shapes


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


def seen_on_both_sides(dataset):
    train, test = (
        {image.numpy().tobytes() for image in images}
        for images in (dataset.train_images_NCHW, dataset.test_images_NCHW)
    )
    return train & test


def test_the_digits_split_has_no_image_on_both_sides():
    dataset = data.load("digits", {})
    assert (len(dataset.train_images_NCHW), len(dataset.test_images_NCHW)) == (1297, 500)
    assert not seen_on_both_sides(dataset)


def test_made_shapes_are_balanced_and_no_image_lies_on_both_sides():
    dataset = data.load("shapes", {})
    assert dataset.train_images_NCHW.shape == (20_000, 3, 32, 32)
    assert dataset.test_labels_N.bincount().tolist() == [500] * 10
    assert not seen_on_both_sides(dataset)
    pixels = dataset.train_images_NCHW.float() / 255
    assert float(pixels.mean()) == pytest.approx(dataset.mean, abs=0.01)
    assert float(pixels.std()) == pytest.approx(dataset.std, abs=0.01)


def test_shapes_are_drawn_by_their_seed_and_neither_colour_nor_place_says_anything_of_the_class():
    images, labels = shapes.draw(3000, seed=3)
    assert torch.equal(images, shapes.draw(3000, seed=3)[0])
    assert not torch.equal(images, shapes.draw(3000, seed=4)[0])
    pixels = images.double() / 255
    colour = pixels.mean(dim=(2, 3))
    halves = pixels.mean(dim=1).view(3000, 2, 16, 2, 16).mean(dim=(2, 4)).flatten(1)
    place = halves - halves.mean(dim=1, keepdim=True)
    for seen in (colour, place):
        apart = torch.stack([seen[labels == label].mean(dim=0) for label in range(10)]) - seen.mean(dim=0)
        # Of 300 images a mean errs by its spread over the root of 300.
        assert (apart.abs() < 4.5 * seen.std(dim=0) / 300**0.5).all()


def test_every_thing_lies_within_its_disc_and_differs_from_the_others():
    line = torch.linspace(-1.3, 1.3, 131)
    y, x = torch.meshgrid(line, line, indexing="ij")
    drawn = [inside(x, y) for inside in shapes.THINGS]
    # The ends of the bar stand out by a fifth of a pixel.
    assert not any((one & (x.hypot(y) > 1.021)).any() for one in drawn)
    areas = [float(one.float().mean()) * 2.6**2 for one in drawn]
    # A disc of 0.9, a triangle and a square in the unit circle.
    assert areas[0] == pytest.approx(math.pi * 0.81, rel=0.02)
    assert areas[2] == pytest.approx(3 * math.sqrt(3) / 4, rel=0.03)
    assert areas[3] == pytest.approx(2.0, rel=0.03)
    for first, second in itertools.combinations(drawn, 2):
        assert (first & second).sum() < 0.8 * (first | second).sum()
