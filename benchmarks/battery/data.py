"""The images of the battery: Fashion-MNIST from local files, scikit-learn's digits, made shapes. Nothing is downloaded.

Shape legend: N images, C channels, H height, W width.
"""

from __future__ import annotations

import functools
import gzip
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.battery import shapes

# Where Debian's package dataset-fashion-mnist puts its four files.
FASHION_MNIST_DIR = Path("/usr/share/datasets/fashion-mnist")
SIDE = 28
_NUM_DIGITS_TEST = 500
_NUM_SHAPES_TRAIN, _NUM_SHAPES_TEST = 20_000, 5_000
_IDX_UINT8 = 0x08


@dataclass(frozen=True, slots=True)
class Dataset:
    """Training and test images, uint8 NCHW, with int64 labels, and the pixel statistics that normalise them."""

    name: str
    num_classes: int
    mean: float
    std: float
    train_images_NCHW: Tensor
    train_labels_N: Tensor
    test_images_NCHW: Tensor
    test_labels_N: Tensor


def load(name: str, environment: Mapping[str, str] = os.environ) -> Dataset:
    """Return the data set "fashion_mnist", "digits" or "shapes".

    Raises:
        FileNotFoundError: the files of Fashion-MNIST are not there; the message says how to get them.
    """
    if name == "fashion_mnist":
        return fashion_mnist(Path(environment.get("FASHION_MNIST_DIR", FASHION_MNIST_DIR)))
    if name == "digits":
        return digits()
    if name == "shapes":
        return made_shapes()
    raise ValueError(f"no data set {name!r}")


def fashion_mnist(folder: Path) -> Dataset:
    """Return the 60,000 training and 10,000 test images of Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747)."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is missing: install Debian's package dataset-fashion-mnist, or set FASHION_MNIST_DIR to a "
            "folder with its four idx.gz files"
        )
    return Dataset(
        name="fashion_mnist",
        num_classes=10,
        mean=0.2860,
        std=0.3530,
        train_images_NCHW=read_idx(folder / "train-images-idx3-ubyte.gz").unsqueeze(1),
        train_labels_N=read_idx(folder / "train-labels-idx1-ubyte.gz").long(),
        test_images_NCHW=read_idx(folder / "t10k-images-idx3-ubyte.gz").unsqueeze(1),
        test_labels_N=read_idx(folder / "t10k-labels-idx1-ubyte.gz").long(),
    )


def digits() -> Dataset:
    """Return scikit-learn's 1,797 digits of 8x8 pixels, enlarged to 28x28; 500 of them, drawn by seed, are the test."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - the battery works without scikit-learn

    bunch = load_digits()
    images_NCHW = torch.from_numpy(bunch.images.astype(np.float32) / 16).unsqueeze(1)
    images_NCHW = torch.nn.functional.interpolate(images_NCHW, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    images_NCHW = (images_NCHW * 255).round().clamp(0, 255).to(torch.uint8)
    labels_N = torch.from_numpy(bunch.target.astype(np.int64))
    order_N = torch.randperm(len(labels_N), generator=torch.Generator().manual_seed(0))
    test_N, train_N = order_N[:_NUM_DIGITS_TEST], order_N[_NUM_DIGITS_TEST:]
    pixels = images_NCHW[train_N].float() / 255
    return Dataset(
        name="digits",
        num_classes=10,
        mean=round(float(pixels.mean()), 4),
        std=round(float(pixels.std()), 4),
        train_images_NCHW=images_NCHW[train_N],
        train_labels_N=labels_N[train_N],
        test_images_NCHW=images_NCHW[test_N],
        test_labels_N=labels_N[test_N],
    )


@functools.cache
def made_shapes() -> Dataset:
    """Return 20,000 and 5,000 coloured images of 32x32 pixels (see `shapes`), drawn by two seeds."""
    train_images_NCHW, train_labels_N = shapes.draw(_NUM_SHAPES_TRAIN, seed=0)
    test_images_NCHW, test_labels_N = shapes.draw(_NUM_SHAPES_TEST, seed=1)
    return Dataset(
        name="shapes",
        num_classes=shapes.NUM_CLASSES,
        mean=0.5,
        std=0.29,
        train_images_NCHW=train_images_NCHW,
        train_labels_N=train_labels_N,
        test_images_NCHW=test_images_NCHW,
        test_labels_N=test_labels_N,
    )


def read_idx(path: Path) -> Tensor:
    """Return the array of one gzipped idx file of unsigned bytes, checked against the sizes that its header states.

    The format: two zero bytes, a type code, the number of dimensions, each dimension as a big-endian 32-bit integer.
    """
    content = gzip.decompress(path.read_bytes())
    zeros, kind, num_dimensions = struct.unpack_from(">HBB", content)
    if zeros != 0 or kind != _IDX_UINT8:
        raise ValueError(f"{path} is not an idx file of unsigned bytes")
    shape = struct.unpack_from(f">{num_dimensions}I", content, 4)
    values = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * num_dimensions)
    return torch.from_numpy(values.reshape(shape).copy())


def subset(labels_N: Tensor, num_images: int, seed: int) -> Tensor:
    """Return the indices of `num_images` images, the same number of every class, in an order drawn by `seed`.

    Raises:
        ValueError: a class has too few images.
    """
    generator = torch.Generator().manual_seed(seed)
    classes = labels_N.unique().tolist()
    per_class, left_over = divmod(num_images, len(classes))
    chosen = []
    for position, label in enumerate(classes):
        indices = (labels_N == label).nonzero().flatten()
        wanted = per_class + (1 if position < left_over else 0)
        if wanted > len(indices):
            raise ValueError(f"class {label} has {len(indices)} images, {wanted} were asked for")
        chosen.append(indices[torch.randperm(len(indices), generator=generator)[:wanted]])
    merged = torch.cat(chosen)
    return merged[torch.randperm(len(merged), generator=generator)]
