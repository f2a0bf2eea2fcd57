"""What a Parquet file says about itself, read by ourselves before Arrow unpacks a page.

The footer's sizes bind nobody: a page header may announce two gigabytes. So the headers of the pages that we are going
to read are walked first (parquet.thrift's PageHeader in Thrift's compact protocol), and Arrow gets the file only if
none of them, nor all together, is above its limit. Where the pages lie is read from the footer by ourselves too: what
Arrow offers for that ends the process when a column's level histograms have the wrong length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

from worker.sanitizer.refusals import CorruptDatasetError, DatasetTooLargeError

MAGIC = b"PAR1"
MAX_FOOTER_BYTES = 4 * 2**20
MAX_PAGE_BYTES = 256 * 2**20
MAX_PAGES = 1_000_000
_MAX_HEADER_BYTES = 64 * 1024  # statistics in it hold a smallest and a largest value; images have none worth keeping
_MAX_DEPTH = 8
_UNCOMPRESSED_SIZE, _COMPRESSED_SIZE = 2, 3  # of PageHeader
_ROW_GROUPS, _COLUMNS = 4, 1  # of FileMetaData, of RowGroup
_FILE_PATH, _META_DATA = 1, 3  # of ColumnChunk
_PATH, _TOTAL_COMPRESSED_SIZE, _DATA_PAGE, _DICTIONARY_PAGE = 3, 7, 9, 11  # of ColumnMetaData

# Types of the compact protocol.
_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 0, 1, 2, 3, 7, 8, 9, 10, 12
_INTEGERS = (4, 5, 6)
_LONG_LIST = 15


Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True)
class Chunk:
    """One column of one row group: its name, with dots between its parts, and where its pages lie."""

    path: str
    start: int
    num_bytes: int


def check_ends(file: BinaryIO, file_bytes: int) -> None:
    """Check magic numbers and the footer's length.

    Raises:
        DatasetRefusedError: corrupt_dataset, dataset_too_large.
    """
    file.seek(0)
    head = file.read(len(MAGIC))
    file.seek(max(0, file_bytes - 8))
    tail = file.read(8)
    if head != MAGIC or len(tail) != 8 or tail[4:] != MAGIC or file_bytes < 12:
        raise CorruptDatasetError("the Parquet file is cut off, or encrypted; upload the whole file, unencrypted")
    footer_bytes = int.from_bytes(tail[:4], "little")
    if footer_bytes > MAX_FOOTER_BYTES:
        raise DatasetTooLargeError(f"the Parquet footer is longer than {MAX_FOOTER_BYTES} bytes; write fewer columns")
    if footer_bytes + 12 > file_bytes:
        raise CorruptDatasetError("the Parquet footer is longer than the file; upload the whole file again")
    file.seek(0)


def chunks(file: BinaryIO, file_bytes: int) -> Iterator[Chunk]:
    """The column chunks that the footer names, in its order. `check_ends` has passed.

    Raises:
        DatasetRefusedError: corrupt_dataset.
    """
    file.seek(file_bytes - 8)
    footer_bytes = int.from_bytes(file.read(4), "little")
    file.seek(file_bytes - 8 - footer_bytes)
    footer = _Thrift(file.read(footer_bytes), with_lists=True).struct()
    for group in _of(footer, _ROW_GROUPS, list):
        for column in _of(group, _COLUMNS, list):
            if _FILE_PATH in _expect(column, dict):
                raise CorruptDatasetError("the Parquet file keeps columns in other files; write it as one file")
            meta = _of(column, _META_DATA, dict)
            start, first = _of(meta, _DATA_PAGE, int), meta.get(_DICTIONARY_PAGE)
            if isinstance(first, int) and 0 < first < start:
                start = first
            parts = [_expect(part, bytes) for part in _of(meta, _PATH, list)]
            path = b".".join(parts).decode("utf-8", "replace")
            yield Chunk(path, start, _of(meta, _TOTAL_COMPRESSED_SIZE, int))


def measure(file: BinaryIO, start: int, num_bytes: int) -> tuple[int, int]:
    """Walk the pages of one column chunk.

    Returns:
        The bytes of its largest page and of all its pages, unpacked.

    Raises:
        DatasetRefusedError: corrupt_dataset, dataset_too_large.
    """
    if start < 0 or num_bytes < 0:
        raise _corrupt()
    position, end = start, start + num_bytes
    largest = total = num_pages = 0
    while position < end:
        file.seek(position)
        # A page header of the format has no list; encodings that would need one are not written.
        header = _Thrift(file.read(min(_MAX_HEADER_BYTES, end - position)), with_lists=False)
        sizes = header.struct()
        unpacked, packed = _of(sizes, _UNCOMPRESSED_SIZE, int), _of(sizes, _COMPRESSED_SIZE, int)
        num_pages += 1
        position += header.position + packed
        if unpacked < 0 or packed < 0 or position > end or num_pages > MAX_PAGES:
            raise _corrupt()
        if unpacked > MAX_PAGE_BYTES:
            raise DatasetTooLargeError(
                f"a Parquet page unpacks to {unpacked} bytes, at most {MAX_PAGE_BYTES} are accepted; "
                "write smaller row groups"
            )
        largest, total = max(largest, unpacked), total + unpacked
    return largest, total


def _of(fields: object, number: int, kind: type[Kind]) -> Kind:
    return _expect(_expect(fields, dict).get(number), kind)


def _expect(value: object, kind: type[Kind]) -> Kind:
    if type(value) is not kind:
        raise _corrupt()
    return value


class _Thrift:
    """A reader of Thrift's compact protocol: structs become dicts by field number, lists and sets become lists."""

    def __init__(self, data: bytes, *, with_lists: bool) -> None:
        self._data, self._with_lists = data, with_lists
        self.position = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """The struct that begins here."""
        if depth > _MAX_DEPTH:
            raise _corrupt()
        found: dict[int, Any] = {}
        number = 0
        while True:
            byte = self._byte()
            kind, delta = byte & 0xF, byte >> 4
            if kind == _STOP:
                return found
            number = number + delta if delta else self._zigzag()
            if number in found:  # readers differ in which of two they believe
                raise _corrupt()
            # In a struct a boolean is its type; in a list it is a byte.
            found[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, depth)

    def _value(self, kind: int, depth: int) -> Any:  # noqa: ANN401 - whatever the file holds
        if kind in _INTEGERS:
            return self._zigzag()
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in (_LIST, _SET):
            return self._list(depth + 1)
        widths = {_TRUE: 1, _FALSE: 1, _BYTE: 1, _DOUBLE: 8}
        if kind != _BINARY and kind not in widths:
            raise _corrupt()
        count = self._varint() if kind == _BINARY else widths[kind]
        self._forward(count)
        return self._data[self.position - count : self.position]

    def _list(self, depth: int) -> list[Any]:
        if depth > _MAX_DEPTH or not self._with_lists:
            raise _corrupt()
        byte = self._byte()
        number = byte >> 4
        if number == _LONG_LIST:
            number = self._varint()
        # Every element takes a byte at least, so that a count cannot promise more than there is.
        if number > len(self._data) - self.position:
            raise _corrupt()
        return [self._value(byte & 0xF, depth) for _ in range(number)]

    def _byte(self) -> int:
        self._forward(1)
        return self._data[self.position - 1]

    def _forward(self, count: int) -> None:
        self.position += count
        if self.position > len(self._data):
            raise _corrupt()

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 64, 7):
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise _corrupt()

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)


def _corrupt() -> CorruptDatasetError:
    return CorruptDatasetError("the pages of the Parquet file do not fit its footer; write the file again")
