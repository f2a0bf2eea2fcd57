"""Hostile clean sets: npz, zips of class folders, Parquet."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, PngImagePlugin

from tests.hostile import zips
from tests.hostile.case import Case, case, from_rows, rows
from tests.sanitizer import test_dataset as arrays
from tests.sanitizer import test_dataset_folders as folders
from tests.sanitizer.test_dataset import IMAGES, LABELS, image, npy, npz, zipped

_FLOATS = IMAGES / np.float32(255)


def _with_pixel(value: float) -> np.ndarray:
    spoiled = _FLOATS.copy()
    spoiled[3, 1, 2, 3] = value
    return spoiled


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


def _png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2, data: bytes = b"\0" * 999) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">2L5B", width, height, depth, colour, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + _chunk(b"IDAT", zlib.compress(data)) + _chunk(b"IEND", b"")
    )


def _large_chunk() -> bytes:
    return _png(6, 8, struct.pack(">L", 2**31 - 1) + b"tEXt")


def _jpeg_of_scans(count: int) -> bytes:
    """A progressive picture whose refinements never end: each costs a pass over all blocks and takes a few bytes."""
    buffer = io.BytesIO()
    Image.new("L", (2048, 2048), 7).save(buffer, "JPEG", progressive=True, quality=10)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + b"\xff\xd9"


def _jpeg_declaring(width: int, height: int) -> bytes:
    data = bytearray(image(kind="JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">2H", height, width)
    return bytes(data)


def _zip_of(name: str, data: bytes) -> bytes:
    return zipped({f"cat/{name}": data}, zipfile.ZIP_STORED)


def _animated() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (6, 8), (i, 0, 0)) for i in range(50)]
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:], default_image=False)
    return buffer.getvalue()


def _large_text() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("note", "n" * (8 * 2**20), zip=True)
    buffer = io.BytesIO()
    Image.new("RGB", (6, 8)).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def _nested_zip(depth: int) -> bytes:
    data = image()
    for _ in range(depth):
        data = zipped({"cat/inner.zip": data})
    return data


def npz_cases() -> list[Case]:
    """Arrays that are none, or not what a model could be judged with."""
    good = npz(images=IMAGES, labels=LABELS)
    odd: dict[str, tuple[bytes, str]] = {
        "nan": (npz(images=_with_pixel(np.nan), labels=LABELS), "non_finite_pixels"),
        "infinity": (npz(images=_with_pixel(np.inf), labels=LABELS), "non_finite_pixels"),
        "beyond-one": (npz(images=_with_pixel(1.5), labels=LABELS), "pixels_out_of_range"),
        "below-zero": (npz(images=_with_pixel(-1e-3), labels=LABELS), "pixels_out_of_range"),
        "double-beyond-float": (npz(images=np.where(_FLOATS > 0.5, 1e300, 0.0), labels=LABELS),
                                "pixels_out_of_range non_finite_pixels"),
        "no-labels": (npz(images=IMAGES), "labels_missing"),
        "negative-labels": (npz(images=IMAGES, labels=LABELS - 1), "labels_out_of_range"),
        "huge-labels": (npz(images=IMAGES, labels=np.full(20, 2**62)), "labels_out_of_range"),
        "one-class": (npz(images=IMAGES, labels=LABELS * 0), "single_class"),
        "few-of-a-class": (npz(images=IMAGES, labels=(np.arange(20) < 2).astype(int)), "too_few_per_class"),
        "no-images": (npz(images=IMAGES[:0], labels=LABELS[:0]), "empty_dataset"),
        "no-width": (npz(images=IMAGES[..., :0], labels=LABELS), "wrong_image_size wrong_image_shape empty_dataset"),
        "other-size": (npz(images=IMAGES[:, :, :4], labels=LABELS), "wrong_image_size"),
        "two-channels": (npz(images=IMAGES[:, :2], labels=LABELS), "wrong_channels"),
        "mixed-dtypes": (npz(images=IMAGES, labels=LABELS.astype(np.float32)), "wrong_label_array"),
        "boolean-labels": (npz(images=IMAGES, labels=LABELS > 0), "wrong_label_array"),
        "dates": (npz(images=IMAGES, labels=LABELS.astype("M8[s]")), "unsupported_dtype"),
        "long-double": (npz(images=IMAGES.astype(np.longdouble), labels=LABELS), "unsupported_dtype"),
        "bytes": (npz(images=np.zeros((20, 3, 8, 6), "S9"), labels=LABELS), "unsupported_dtype"),
        "void": (npz(images=np.zeros((20, 3, 8, 6), "V9"), labels=LABELS), "unsupported_dtype"),
        "record": (npz(images=IMAGES, labels=np.zeros(20, "i4,i4")), "unsupported_dtype"),
        "bomb": (npz(compressed=True, images=np.zeros((20, 3, 1100, 1100), np.uint8), labels=LABELS),
                 "dataset_too_large"),
        "declared-bomb": (zips.archive([zips.Entry(b"images.npy", npy(
            "{'descr': '|u1', 'fortran_order': False, 'shape': (4294967296,)}", b"x"), method=8,
            packed=zlib.compress(bytes(9))[2:-4], central={"unpacked": 2**32 - 2}, local={"unpacked": 2**32 - 2})]),
            "dataset_too_large"),
        "unpacks-to-more": (zips.archive([zips.Entry(b"images.npy", b"\x93NUMPY" + bytes(60), method=8,
                                                     packed=zlib.compress(bytes(2**24))[2:-4])]), "corrupt_dataset"),
        "wrong-checksum": (zips.archive([zips.Entry(b"images.npy", npy(
            "{'descr': '|u1', 'fortran_order': False, 'shape': (1, 3, 8, 6)}", bytes(144)), central={"crc": 7},
            local={"crc": 7})]), "corrupt_dataset"),
        "no-deflate-stream": (zips.archive([zips.Entry(b"images.npy", bytes(99), method=8, packed=b"\xff" * 50)]),
                              "corrupt_dataset"),
        "single-array": (good[good.index(b"\x93NUMPY"):][:400], "unknown_dataset_format"),
        "gif-before": (b"GIF89a;" + good, "unknown_dataset_format"),
        "image-folder-too": (zipped({"images.npy": b"\x93NUMPY", "cat/1.png": image()}), "corrupt_dataset"),
        "array-of-another-name": (zipped({"images": b"\x93NUMPY"}), "wrong_folder_layout"),
        **{f"cut-to-{share}-of-6": (good[: len(good) * share // 6], "corrupt_archive") for share in range(1, 6)},
    }  # fmt: skip
    headers = [(header, None) for header in _single(arrays.test_hostile_npy_headers_are_refused)]
    return [
        *from_rows(arrays.test_odd_arrays_are_refused, "npz"),
        *(
            case(f"npz-header-{index}", "npz", zipped({"images.npy": npy(header, b"xx")}), "corrupt_dataset",
                 "unsupported_dtype")
            for index, (header, _) in enumerate(headers)
        ),
        *(case(f"npz-{name}", "npz", data, *codes.split()) for name, (data, codes) in odd.items()),
        *zips.cases("npz", lambda: _members(good)),
    ]  # fmt: skip


def _single(test: Callable[..., object]) -> list[str]:
    (mark,) = [mark for mark in test.pytestmark if mark.name == "parametrize"]
    return list(mark.args[1])


def _members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def image_cases() -> list[Case]:
    """Archives of pictures, and pictures."""
    pictures: dict[str, tuple[str, Callable[[], bytes], str]] = {
        "png-of-2-gigapixels": ("1.png", lambda: _png(46340, 46340), "image_too_large"),
        "png-of-a-long-row": ("1.png", lambda: _png(2**31 - 1, 1), "image_too_large"),
        "png-of-no-width": ("1.png", lambda: _png(0, 8), "corrupt_dataset"),
        "png-of-odd-depth": ("1.png", lambda: _png(6, 8, depth=3), "corrupt_dataset"),
        "png-of-odd-colour": ("1.png", lambda: _png(6, 8, colour=5), "corrupt_dataset"),
        "png-too-short": ("1.png", lambda: _png(64, 64, data=b"\0"), "corrupt_dataset"),
        "png-cut": ("1.png", lambda: image()[:52], "corrupt_dataset"),
        "png-large-chunk": ("1.png", _large_chunk, "corrupt_dataset"),
        "png-text-bomb": ("1.png", _large_text, "corrupt_dataset"),
        "png-two-headers": ("1.png", lambda: image()[:33] + image()[8:33] + image()[33:],
                            "corrupt_dataset wrong_class_count"),
        "png-many-frames": ("1.png", _animated, "wrong_class_count"),
        "jpeg-of-4-gigapixels": ("1.jpg", lambda: _jpeg_declaring(65500, 65500), "image_too_large"),
        "jpeg-of-no-size": ("1.jpg", lambda: _jpeg_declaring(0, 0), "corrupt_dataset"),
        "jpeg-of-many-scans": ("1.jpg", lambda: _jpeg_of_scans(20_000), "corrupt_dataset"),
        "jpeg-cut": ("1.jpg", lambda: image(kind="JPEG")[:-40], "corrupt_dataset"),
        "webp": ("1.png", lambda: image(kind="WEBP"), "corrupt_dataset"),
        "tiff": ("1.png", lambda: image(kind="TIFF"), "corrupt_dataset"),
        "svg": ("1.png", lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "corrupt_dataset"),
        "postscript": ("1.jpg", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\nquit\n", "corrupt_dataset"),
        "zip-as-png": ("1.png", lambda: zipped({"x": b"y"}), "corrupt_dataset"),
        "npy-as-png": ("1.png", lambda: b"\x93NUMPY", "corrupt_dataset"),
    }  # fmt: skip
    archives: dict[str, tuple[Callable[[], bytes], str]] = {
        "nested": (lambda: _nested_zip(9), "nested_archive"),
        "nested-tar": (lambda: zipped({"cat/a.tar.gz": b"x"}), "nested_archive"),
        "bomb": (lambda: zipped({f"cat/{i}.png": bytes(2**23) for i in range(9)}), "dataset_too_large"),
        "script": (lambda: zipped({"cat/1.png": image(), "cat/run.py": b"x"}), "wrong_folder_layout"),
        "many-classes": (lambda: zipped({f"class{i}/1.png": image() for i in range(1200)}),
                         "wrong_folder_layout labels_out_of_range"),
        "deep-folders": (lambda: zipped({"a/" * 300 + "1.png": image(), "b/1.png": image()}), "wrong_folder_layout"),
        "device-name": (lambda: zipped({"con/nul.png": b"x"}), "corrupt_dataset"),
        "bidirectional-name": (lambda: zipped({"cat/\u202egnp.exe": image()}), "wrong_folder_layout"),
        "metadata-of-paths": (lambda: zipped({"a.png": image(), "metadata.csv": b"file_name,label\n../../x,cat\n"}),
                              "wrong_folder_layout"),
        "metadata-of-columns": (lambda: zipped({"a.png": image(), "metadata.csv": b"a," * 400_000 + b"label\nx,"}),
                                "corrupt_dataset"),
        "metadata-deep": (lambda: zipped({"a.png": image(), "metadata.jsonl": b'{"a":' * 90_000}), "corrupt_dataset"),
        "sizes-differ": (lambda: zipped({"a/1.png": image(), "b/1.png": image(size=(9, 9))}), "image_sizes_differ"),
        "cut": (lambda: zipped({"cat/1.png": image()})[:-9], "corrupt_archive"),
        "pdf-before": (lambda: b"%PDF-1.4\n" + zipped({"cat/1.png": image()}), "unknown_dataset_format"),
        "jpeg-before": (lambda: image(kind="JPEG") + zipped({"cat/1.png": image()}), "unknown_dataset_format"),
    }  # fmt: skip
    return [
        *from_rows(arrays.test_odd_image_archives_are_refused, "images"),
        *(
            case(f"images-metadata-{index}", "images", zipped(members), code)
            for index, (members, code) in enumerate(
                rows(folders.test_metadata_and_splits_that_leave_a_doubt_are_refused)
            )
        ),
        *(
            case(f"images-{name}", "images", lambda _, n=inner, m=make: _zip_of(n, m()), *codes.split())
            for name, (inner, make, codes) in pictures.items()
        ),
        *(
            case(f"images-{name}", "images", lambda _, m=make: m(), *codes.split())
            for name, (make, codes) in archives.items()
        ),
        *zips.cases("images", lambda: {"cat/1.png": image(), "dog/1.png": image(value=9)}),
    ]


def parquet_cases() -> list[Case]:
    """Parquet files; none where there is no pyarrow to write them."""
    try:
        import pyarrow as pa  # noqa: PLC0415
    except ImportError:
        return []
    from tests.sanitizer import test_dataset_parquet as parquet  # noqa: PLC0415

    good = parquet.written(parquet.table())
    note = json.dumps({"info": {"features": {"label": {"_type": "ClassLabel", "names": ["n" * 5000]}}}})
    odd: dict[str, tuple[Callable[[], bytes], str]] = {
        "page-bomb": (
            lambda: parquet.written(parquet.table([0] * 9, data=[bytes(30 << 20)] * 9), compression="zstd",
                                    use_dictionary=False), "dataset_too_large"),
        "image-bomb": (lambda: parquet.written(parquet.table([0], data=[_png(46340, 46340)])), "image_too_large"),
        "one-class": (lambda: parquet.written(parquet.table([0] * 4, data=[image()] * 4)),
                      "single_class wrong_class_count too_few_per_class"),
        "negative-labels": (lambda: parquet.written(parquet.table([0, 1, -5, 1], noted={})), "labels_out_of_range"),
        "large-labels": (lambda: parquet.written(parquet.table([0, 1, 2**62, 1], noted={})), "labels_out_of_range"),
        "sizes-differ": (lambda: parquet.written(parquet.table([0, 1], data=[image(), image(size=(7, 7))])),
                         "image_sizes_differ"),
        "paths-only": (lambda: parquet.written(parquet.table(data=[None] * 4)), "wrong_parquet_layout"),
        "long-class-name": (
            lambda: parquet.written(parquet.table().replace_schema_metadata({"huggingface": note})),
            "wrong_parquet_layout"),
        "deep-schema": (lambda: parquet.written(pa.table({"image": pa.array([_deep(30)])})),
                        "corrupt_dataset wrong_parquet_layout"),
        "encrypted-magic": (lambda: b"PARE" + good[4:-4] + b"PARE", "unknown_dataset_format"),
        "encrypted-footer": (lambda: good[:-4] + b"PARE", "corrupt_dataset"),
        "footer-of-itself": (lambda: good[:-8] + struct.pack("<L", len(good) - 12) + b"PAR1", "corrupt_dataset"),
        "no-footer": (lambda: b"PAR1" + bytes(4) + b"PAR1", "corrupt_dataset"),
        "zip-behind": (lambda: good + zipped({"x": b"y"}), "corrupt_dataset"),
        "arrow-file": (lambda: b"ARROW1\0\0" + good, "unknown_dataset_format"),
        "shard-outside": (lambda: zipped({"../train-0.parquet": good}), "archive_path_refused"),
        "shard-of-json": (lambda: zipped({"train-0.parquet": b"{}"}), "corrupt_dataset"),
        **{f"cut-to-{share}-of-6": (lambda s=share: good[: len(good) * s // 6], "corrupt_dataset")
           for share in range(1, 6)},
    }  # fmt: skip
    return [
        *from_rows(parquet.test_odd_parquet_is_refused, "parquet"),
        *(
            case(f"parquet-{name}", "parquet", lambda _, m=make: m(), *codes.split())
            for name, (make, codes) in odd.items()
        ),
    ]


def _deep(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = {"a": value}
    return value
