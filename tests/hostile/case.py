"""One hostile file: how it is made, and what must come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Format = Literal["safetensors", "torch", "pickle", "pt2", "onnx", "hugging_face", "npz", "images", "parquet"]

SUFFIXES: dict[Format, str] = {
    "safetensors": ".safetensors",
    "torch": ".pth",
    "pickle": ".pkl",
    "pt2": ".pt2",
    "onnx": ".onnx",
    "hugging_face": ".zip",
    "npz": ".npz",
    "images": ".zip",
    "parquet": ".parquet",
}
DATASETS: tuple[Format, ...] = ("npz", "images", "parquet")

# What a file ends in whose hostile part is never read, and never passed on.
NEUTRALISED = "neutralised"


@dataclass(frozen=True, slots=True)
class Case:
    """A file that must be refused, or read without its hostile part.

    Attributes:
        name: Unique among all cases.
        format: What it pretends to be; decides which parser gets it.
        build: Makes its bytes. If it carries code, that code would create the file whose path is given.
        codes: The refusals that it may end in, or NEUTRALISED.
        carries_code: Whether there is a pickle in it that would create that file.
    """

    name: str
    format: Format
    build: Callable[[Path], bytes]
    codes: frozenset[str]
    carries_code: bool = False

    @property
    def is_dataset(self) -> bool:
        """Whether it goes to the parser of datasets rather than of checkpoints."""
        return self.format in DATASETS

    @property
    def file_name(self) -> str:
        """A name with the suffix that scanners go by."""
        return self.name + SUFFIXES[self.format]


def case(
    name: str, kind: Format, data: bytes | Callable[[Path], bytes], *codes: str, carries_code: bool = False
) -> Case:
    """A case of bytes that are there already, or of a function that makes them."""
    build = data if callable(data) else lambda _: data
    return Case(name, kind, build, frozenset(codes), carries_code)


def rows(test: Callable[..., object]) -> list[tuple[Any, ...]]:
    """What a parametrised test is run with: files that are refused one by one there, and together here."""
    (mark,) = [mark for mark in test.pytestmark if mark.name == "parametrize"]
    return [tuple(getattr(row, "values", row)) for row in mark.args[1]]


def from_rows(test: Callable[..., object], kind: Format) -> list[Case]:
    """The cases of a test of (data, code)."""
    name = test.__name__.removeprefix("test_")
    return [case(f"{kind}-{name}-{index}", kind, data, code) for index, (data, code) in enumerate(rows(test))]
