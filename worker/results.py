"""What a child left behind, read without trust: it parsed hostile files, so its own files are foreign input too."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TypeVar

import pydantic

from worker.sanitizer.findings import Preview
from worker.sanitizer.report import MAX_ALL_FIGURES_BYTES, MAX_FIGURE_BYTES, FigureInfo, Report

Shape = TypeVar("Shape", Report, Preview)

MAX_REPORT_BYTES = 64 * 1024 * 1024
MAX_FIGURES = 32
MAX_TITLE = 200
PNG = "image/png"
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
# One that a URL, a file system and a database take as it is; service.jobs looks up no other.
_FIGURE_NAME = re.compile(r"[a-z0-9_-]{1,64}")


class UntrueResultError(Exception):
    """The child said that it succeeded, and what it left does not bear that out."""


def open_plain(path: Path, *, max_bytes: int, folder: int | None = None) -> IO[bytes]:
    """Open what the child left: a plain file and no link, since a link could lead to a file of ours.

    Args:
        path: the file; within `folder` if that is given.
        max_bytes: the longest that it may be. Empty it may not be.
        folder: descriptor of the folder that it lies in.

    Raises:
        UntrueResultError: it is not there, or not like that.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError as error:
        raise UntrueResultError(f"{path.name}: {error.strerror}") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or not 0 < status.st_size <= max_bytes:
        os.close(descriptor)
        raise UntrueResultError(f"{path.name} is no plain file within its limits")
    return os.fdopen(descriptor, "rb")


def read_report(path: Path) -> Report:
    """The report.

    Raises:
        UntrueResultError: it is not there, too long, or of another shape.
    """
    return _read(path, pydantic.TypeAdapter(Report))


def read_preview(path: Path) -> Preview:
    """The report of a preview.

    Raises:
        UntrueResultError: it is not there, too long, or of another shape.
    """
    return _read(path, pydantic.TypeAdapter(Preview))


def _read(path: Path, shape: pydantic.TypeAdapter[Shape]) -> Shape:
    with open_plain(path, max_bytes=MAX_REPORT_BYTES) as file:
        text = file.read(MAX_REPORT_BYTES)
    try:
        return shape.validate_json(text)
    except pydantic.ValidationError as error:
        raise UntrueResultError("the report does not have its shape") from error


def read_figures(path: Path, infos: Sequence[FigureInfo]) -> Iterator[tuple[FigureInfo, bytes]]:
    """Each figure that the report lists, with its bytes; files that it does not list are not looked at.

    Raises:
        UntrueResultError: a name, type, title or size is not allowed, there are too many, one is not there, or its
            bytes are no PNG file or not those of the report.
    """
    _check_list(infos)
    if not infos:
        return
    # Opened once and without following it, so that no link in its place leads a name elsewhere.
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise UntrueResultError(f"{path.name}: {error.strerror}") from error
    try:
        for info in infos:
            with open_plain(Path(f"{info.name}.png"), max_bytes=info.size_bytes, folder=folder) as file:
                data = file.read(info.size_bytes + 1)
            if not data.startswith(_PNG_MAGIC) or hashlib.sha256(data).hexdigest() != info.sha256:
                raise UntrueResultError(f"figure {info.name} is not the one that the report describes")
            if len(data) != info.size_bytes:
                raise UntrueResultError(f"figure {info.name} is not as long as the report says")
            yield info, data
    finally:
        os.close(folder)


def _check_list(infos: Sequence[FigureInfo]) -> None:
    names = {info.name for info in infos}
    if len(infos) > MAX_FIGURES or len(names) < len(infos):
        raise UntrueResultError("the report lists too many figures, or one twice")
    for info in infos:
        if not _FIGURE_NAME.fullmatch(info.name) or info.media_type != PNG or not 0 < len(info.title) <= MAX_TITLE:
            raise UntrueResultError("the report lists a figure that may not be called so")
        if not 0 < info.size_bytes <= MAX_FIGURE_BYTES:
            raise UntrueResultError(f"figure {info.name} is larger than a figure may be")
    if sum(info.size_bytes for info in infos) > MAX_ALL_FIGURES_BYTES:
        raise UntrueResultError("the figures are larger than all of them may be")
