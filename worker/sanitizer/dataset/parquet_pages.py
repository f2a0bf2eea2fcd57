"""What a Parquet file says about itself, read by ourselves before Arrow unpacks a page.

The footer's sizes bind nobody: a page header may announce two gigabytes. So the headers of the pages that we are going
to read are walked first (parquet.thrift's PageHeader in Thrift's compact protocol), and Arrow gets the file only if
none of them, nor all together, is above its limit.
"""

from __future__ import annotations

from typing import BinaryIO

from worker.sanitizer.refusals import CorruptDatasetError, DatasetTooLargeError

MAGIC = b"PAR1"
MAX_FOOTER_BYTES = 4 * 2**20
MAX_PAGE_BYTES = 256 * 2**20
MAX_PAGES = 1_000_000
_MAX_HEADER_BYTES = 64 * 1024  # statistics in it hold a smallest and a largest value; images have none worth keeping
_MAX_DEPTH = 8
_UNCOMPRESSED_SIZE, _COMPRESSED_SIZE = 2, 3

# Types of the compact protocol.
_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 0, 1, 2, 3, 7, 8, 9, 10, 12
_INTEGERS = (4, 5, 6)


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


def measure(file: BinaryIO, start: int, num_bytes: int) -> tuple[int, int]:
    """Walk the pages of one column chunk.

    Returns:
        The bytes of its largest page and of all its pages, unpacked.

    Raises:
        DatasetRefusedError: corrupt_dataset, dataset_too_large.
    """
    position, end = start, start + num_bytes
    largest = total = num_pages = 0
    while position < end:
        file.seek(position)
        header = _Header(file.read(min(_MAX_HEADER_BYTES, end - position)))
        sizes = header.read_sizes()
        unpacked, packed = sizes.get(_UNCOMPRESSED_SIZE, -1), sizes.get(_COMPRESSED_SIZE, -1)
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


class _Header:
    """A reader of one Thrift struct that keeps its integers and skips everything else."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def read_sizes(self) -> dict[int, int]:
        """The integer fields of the outermost struct, by number."""
        return self._struct(0)

    def _struct(self, depth: int) -> dict[int, int]:
        if depth > _MAX_DEPTH:
            raise _corrupt()
        found: dict[int, int] = {}
        number = 0
        while True:
            byte = self._byte()
            kind, delta = byte & 0xF, byte >> 4
            if kind == _STOP:
                return found
            number = number + delta if delta else self._zigzag()
            if kind in _INTEGERS:
                if number in found:  # readers differ in which of two they believe
                    raise _corrupt()
                found[number] = self._zigzag()
            else:
                self._skip(kind, depth)

    def _skip(self, kind: int, depth: int) -> None:
        if kind in (_TRUE, _FALSE):
            return
        if kind == _BYTE:
            self._forward(1)
        elif kind == _DOUBLE:
            self._forward(8)
        elif kind == _BINARY:
            self._forward(self._varint())
        elif kind == _STRUCT:
            self._struct(depth + 1)
        elif kind in (_LIST, _SET):
            # A page header of the format has none; encodings that would need one are not written.
            raise _corrupt()
        else:
            raise _corrupt()

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
