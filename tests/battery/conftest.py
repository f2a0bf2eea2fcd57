"""A data set that a tiny network learns in seconds, in the place of Fashion-MNIST."""

import gzip
import struct

import pytest


@pytest.fixture(scope="session")
def bars_folder(tmp_path_factory):
    """Ten classes that a small network tells apart at once: a bright bar in one of ten places."""
    folder = tmp_path_factory.mktemp("bars")
    for prefix, count in (("train", 800), ("t10k", 400)):
        images = bytearray(count * 784)
        for index in range(count):
            row = 2 + 2 * (index % 10)
            start = index * 784 + row * 28 + 4
            images[start : start + 18] = bytes([200]) * 18
        header = struct.pack(">HBB3I", 0, 8, 3, count, 28, 28)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + bytes(images), 1))
        labels = struct.pack(">HBBI", 0, 8, 1, count) + bytes(index % 10 for index in range(count))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    return folder


@pytest.fixture
def bars(bars_folder, monkeypatch):
    """The bars take the place of Fashion-MNIST."""
    monkeypatch.setenv("FASHION_MNIST_DIR", str(bars_folder))
