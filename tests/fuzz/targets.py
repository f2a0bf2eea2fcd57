"""What is fuzzed: each parser with the bytes that it reads first, and good files to begin from."""

from __future__ import annotations

import functools
import importlib.util
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.hostile import checkpoints as hostile
from tests.hostile import repositories
from tests.sanitizer import test_dataset as arrays
from tests.sanitizer.programs import conftest as pt2
from tests.sanitizer.programs import test_onnx_hostile as onnx
from tests.sanitizer.test_checkpoint_hostile import VALID, members_of, torch_bytes, with_pickle
from tests.sanitizer.test_dataset import IMAGES, LABELS, image, npz, zipped
from worker.sanitizer import archives, checkpoint, dataset
from worker.sanitizer.architectures.hugging_face import config
from worker.sanitizer.dataset import metadata, parquet_pages, pictures

Parse = Callable[[bytes, Path], object]


@dataclass(frozen=True, slots=True)
class Target:
    """One parser.

    Attributes:
        name: What it is called on the command line.
        seeds: Makes good inputs.
        parse: Reads an input, with a path where it may put a file; raises refusals and nothing else.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    parse: Parse


def _read_file(read: Callable[[Path], object], wrap: Callable[[bytes], bytes] = bytes) -> Parse:
    """A parser of files, given the file or the part of it that is fuzzed."""

    def parse(data: bytes, path: Path) -> object:
        path.write_bytes(wrap(data))
        return read(path)

    return parse


def _read_and_write(path: Path) -> None:
    """What was read must be writable again."""
    checkpoint.read(path).write(path.with_name("written"), {})


def _in_program(member: str) -> Callable[[bytes], bytes]:
    return lambda data: pt2.zipped({**hostile.exported(), member: data})


def _parquet_seeds() -> list[bytes]:
    from tests.sanitizer.test_dataset_parquet import table, written  # noqa: PLC0415 - needs an extra

    return [written(table(), compression="none"), written(table(), compression="snappy", use_dictionary=False)]


def _npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, IMAGES[:2])
    return buffer.getvalue()


def _onnx() -> bytes:
    return bytes(onnx.good().SerializeToString())


def _table(data: bytes, _: Path) -> object:
    return metadata.read_labels(data[1:], "metadata.csv" if data[:1] < b"\x80" else "metadata.jsonl")


def _pages(data: bytes, _: Path) -> object:
    return parquet_pages.measure(io.BytesIO(data), 0, len(data))


@functools.cache
def targets() -> dict[str, Target]:
    """All that can be made here, by name; their seeds are made when they are asked for."""
    zips = [arrays.class_zip(count=1), npz(images=IMAGES[:2], labels=LABELS[:2]), torch_bytes()]
    found = [
        Target("archive", lambda: zips, lambda data, _: archives.read_directory(io.BytesIO(data), len(data))),
        Target("safetensors", lambda: [VALID["safetensors"]], _read_file(_read_and_write)),
        Target("torch", lambda: [VALID["zip"], torch_bytes()], _read_file(_read_and_write)),
        Target("pickle", lambda: [members_of(VALID["zip"])["archive/data.pkl"]],
               _read_file(checkpoint.read, with_pickle)),
        Target("pt2-graph", lambda: [hostile.exported()[pt2.MODEL]],
               _read_file(checkpoint.read, _in_program(pt2.MODEL))),
        Target("pt2-weights", lambda: [hostile.exported()[pt2.WEIGHTS]],
               _read_file(checkpoint.read, _in_program(pt2.WEIGHTS))),
        Target("onnx", lambda: [_onnx()], _read_file(_read_and_write)),
        Target("repository", lambda: [repositories.zipped(repositories.members())], _read_file(_read_and_write)),
        Target("repository-config", lambda: [repositories.config(), repositories.config(num_labels=5)],
               lambda data, _: config.parse(data)),
        Target("npz", lambda: [npz(images=IMAGES[:2], labels=LABELS[:2])], _read_file(dataset.read)),
        Target("npy", lambda: [_npy()], _read_file(dataset.read, lambda data: zipped({"images.npy": data}))),
        Target("folders", lambda: [arrays.class_zip(count=1)], _read_file(dataset.read)),
        Target("picture", lambda: [image(), image("P"), image("I;16"), image(kind="JPEG")],
               lambda data, _: pictures.decode(data, "picture")),
        Target("metadata", lambda: [b"\0file_name,label\na.png,cat\n", b'\xff{"file_name": "a.png", "label": 3}\n'],
               _table),
    ]  # fmt: skip
    if importlib.util.find_spec("pyarrow") is not None:
        pages = Target("parquet-pages", lambda: [seed[4:400] for seed in _parquet_seeds()], _pages)
        found += [Target("parquet", _parquet_seeds, _read_file(dataset.read)), pages]
    return {target.name: target for target in found}
