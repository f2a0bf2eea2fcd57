"""Datasets: formats, layouts, checks against the model's input, and hostile files built on the fly."""

import contextlib
import io
import stat
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save as safetensors_bytes

from worker.sanitizer.dataset import LabelledImages, arrays, check, pixels, read, reading, stacking
from worker.sanitizer.refusals import DatasetRefusedError

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 3, 8, 6), dtype=np.uint8)
LABELS = np.arange(20) % 2
EXPECTED = {"num_classes": 2, "in_channels": 3, "height": 8, "width": 6, "kind": "clean"}


def npz(compressed: bool = False, **found: object) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **found)
    return buffer.getvalue()


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def image(mode: str = "RGB", size: tuple[int, int] = (6, 8), kind: str = "PNG", value: int = 7) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, value if mode in ("L", "1", "P", "I;16") else (value,) * len(mode)).save(buffer, kind)
    return buffer.getvalue()


def read_bytes(tmp_path: Path, data: bytes, **options: object) -> LabelledImages:
    path = tmp_path / "upload"
    path.write_bytes(data)
    return read(path, **options)


def refusal(tmp_path: Path, data: bytes) -> str:
    with pytest.raises(DatasetRefusedError) as caught:
        read_bytes(tmp_path, data)
    assert len(caught.value.message) > 20
    return caught.value.code


@pytest.mark.parametrize(
    "data",
    [
        npz(images=IMAGES, labels=LABELS),
        npz(compressed=True, images=IMAGES, labels=LABELS),
        npz(images=np.asfortranarray(IMAGES), labels=LABELS.astype(">i4")),
        npz(images=IMAGES.transpose(0, 2, 3, 1), labels=LABELS.astype(np.uint64)),
        safetensors_bytes({"images": IMAGES, "labels": LABELS}),
        safetensors_bytes({"images": IMAGES, "labels": LABELS.astype(np.uint8)}),
    ],
)
def test_every_array_format_gives_the_same_images_and_labels(tmp_path, data):
    found = read_bytes(tmp_path, data)
    assert torch.equal(found.images_NCHW, torch.from_numpy(IMAGES))
    assert torch.equal(found.labels_N, torch.from_numpy(LABELS))
    assert found.labels_N.dtype == torch.int64
    assert found.class_names is None
    check(found, **EXPECTED)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("save", [npz, lambda **found: safetensors_bytes(found)])
def test_floating_images_become_float32(tmp_path, dtype, save):
    found = read_bytes(tmp_path, save(images=np.full((2, 3, 8, 6), 0.25, dtype), labels=LABELS[:2]))
    assert found.images_NCHW.dtype == torch.float32
    assert pixels(found.images_NCHW).unique().tolist() == [0.25]


def test_pixels_maps_bytes_to_the_unit_interval():
    assert torch.allclose(pixels(torch.tensor([0, 51, 255], dtype=torch.uint8)), torch.tensor([0.0, 0.2, 1.0]))


def test_gray_images_need_no_channel_axis(tmp_path):
    assert read_bytes(tmp_path, npz(images=IMAGES[:, 0], labels=LABELS)).images_NCHW.shape == (20, 1, 8, 6)


def test_labels_may_be_absent(tmp_path):
    assert read_bytes(tmp_path, npz(images=IMAGES)).labels_N is None


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty_upload"),
        (b"\0" * 100, "unknown_dataset_format"),
        (b"\x93NUMPY\x01\x00", "unknown_dataset_format"),
        (npz(x=IMAGES, y=LABELS), "missing_images"),
        (safetensors_bytes({"x": IMAGES}), "missing_images"),
        (npz(images=IMAGES.astype(np.int64), labels=LABELS), "wrong_image_dtype"),
        (npz(images=IMAGES > 3, labels=LABELS), "wrong_image_dtype"),
        (npz(images=IMAGES[0, 0], labels=LABELS), "wrong_image_shape"),
        (npz(images=IMAGES[None], labels=LABELS), "wrong_image_shape"),
        (npz(images=IMAGES[..., :3], labels=LABELS), "ambiguous_image_layout"),
        (npz(images=IMAGES, labels=LABELS[:-1]), "wrong_label_array"),
        (npz(images=IMAGES, labels=LABELS / 2), "wrong_label_array"),
        (npz(images=IMAGES, labels=LABELS[:, None]), "wrong_label_array"),
        (npz(images=IMAGES, labels=np.full(20, 2**63, np.uint64)), "wrong_label_array"),
        (npz(images=np.array([{}, []], dtype=object)), "object_array"),
        (npz(images=IMAGES.astype(np.complex64)), "unsupported_dtype"),
        (npz(images=np.zeros(3, dtype="U5")), "unsupported_dtype"),
        (npz(images=np.zeros(3, dtype=[("a", "u1")])), "unsupported_dtype"),
        (npz(images=IMAGES)[:-10], "corrupt_archive"),
        (zipped({"images.npy": b"\x93NUMPY\x01\x00"}), "corrupt_dataset"),
        (zipped({"images.npy": b"not numpy at all"}), "corrupt_dataset"),
        (zipped({"images.npy": b"\x93NUMPY\x03\x00\x02\0\0\0{}"}), "corrupt_dataset"),
        (zipped({"images.npy": b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{}"}), "corrupt_dataset"),
        (zipped({"images.npy": npz(images=IMAGES)}), "corrupt_dataset"),
    ],
)
def test_odd_arrays_are_refused(tmp_path, data, code):
    assert refusal(tmp_path, data) == code


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (10,)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776, 1099511627776)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (0, 4611686018427387904)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, -1)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1, 1" + ", 1" * 40 + ")}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': ()}",
        "{'descr': 'nonsense', 'fortran_order': False, 'shape': (1,)}",
        "{'descr': ['|u1'], 'fortran_order': False, 'shape': (1,)}",
        "{'descr': '|u1', 'fortran_order': 3, 'shape': (1,)}",
        "{'shape': (1,)}",
        "__import__('os').system('id')",
        "(" * 5000,
        "{" * 20000,
        "'",
        "1L",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1L,)}",
    ],
)
def test_hostile_npy_headers_are_refused(tmp_path, header):
    code = refusal(tmp_path, zipped({"images.npy": npy(header, b"xx")}))
    assert code in ("corrupt_dataset", "unsupported_dtype")


def test_an_object_array_does_not_unpickle(tmp_path):
    target = tmp_path / "touched"

    class Toucher:
        def __reduce__(self):
            return (Path.touch, (target,))

    data = npz(images=np.array([Toucher(), None], dtype=object))
    assert refusal(tmp_path, data) == "object_array"
    assert not target.exists()
    _ = np.load(io.BytesIO(data), allow_pickle=True)["images"]
    assert target.exists()


def test_a_bomb_is_refused_by_its_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "RATIO_FREE_BYTES", 2**20)
    zeros = np.zeros((2**12, 1, 32, 32), np.uint8)
    assert refusal(tmp_path, npz(compressed=True, images=zeros)) == "dataset_too_large"
    monkeypatch.setattr(reading, "MAX_UNPACKED_BYTES", 2**20)
    assert refusal(tmp_path, npz(images=zeros)) == "dataset_too_large"


def test_a_member_that_unpacks_to_more_than_it_declares_is_refused(tmp_path):
    body = npy("{'descr': '|u1', 'fortran_order': False, 'shape': (100,)}", b"x" * 4000)
    data = zipped({"images.npy": body})
    honest = struct.pack("<L", len(body))
    assert data.count(honest) == 2
    assert refusal(tmp_path, data.replace(honest, struct.pack("<L", len(body) - 3900))) == "corrupt_dataset"


def class_zip(names: tuple[str, ...] = ("cat", "dog"), top: str = "", count: int = 5, **options: object) -> bytes:
    return zipped(
        {f"{top}{n}/{i}.png": image(value=10 * k + i, **options) for k, n in enumerate(names) for i in range(count)}
    )


@pytest.mark.parametrize("top", ["", "set/"])
def test_class_folders_are_labels_in_sorted_order(tmp_path, top):
    data = zipped({
        f"{top}dog/a.png": image(value=20),
        f"{top}cat/b.JPG": image(value=10, kind="JPEG"),
        f"{top}cat/a.png": image(value=5),
        f"__MACOSX/{top}cat/._a.png": b"junk",
        f"{top}.DS_Store": b"junk",
        f"{top}empty/": b"",
    })  # fmt: skip
    found = read_bytes(tmp_path, data)
    assert found.class_names == ("cat", "dog", "empty")
    assert found.labels_N.tolist() == [0, 0, 1]
    assert found.images_NCHW.dtype == torch.uint8
    assert found.images_NCHW.shape == (3, 3, 8, 6)
    assert found.images_NCHW[[0, 2], 0, 0, 0].tolist() == [5, 20]


def test_numbered_folders_are_the_labels(tmp_path):
    found = read_bytes(tmp_path, class_zip(("10", "2", "00")))
    assert sorted(found.labels_N.unique().tolist()) == [0, 2, 10]
    assert len(found.class_names) == 11
    assert set(found.images_NCHW[found.labels_N == 2, 0, 0, 0].tolist()) == {10, 11, 12, 13, 14}


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("1", 1), ("LA", 1), ("RGB", 3), ("RGBA", 3), ("P", 3)])
def test_without_a_model_gray_stays_gray_and_the_rest_becomes_rgb(tmp_path, mode, channels):
    assert read_bytes(tmp_path, zipped({"a/1.png": image(mode)})).images_NCHW.shape == (1, channels, 8, 6)


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "RGBA", "P"])
@pytest.mark.parametrize("in_channels", [1, 3, 4])
def test_image_modes_become_the_channels_that_are_needed(tmp_path, mode, in_channels):
    found = read_bytes(tmp_path, zipped({"a/1.png": image(mode)}), in_channels=in_channels)
    assert found.images_NCHW.shape == (1, in_channels, 8, 6)


def test_gray_among_colour_becomes_three_equal_channels(tmp_path):
    found = read_bytes(tmp_path, zipped({"a/1.png": image("L", value=9), "a/2.png": image("RGB", value=4)}))
    assert found.images_NCHW[:, :, 0, 0].tolist() == [[9, 9, 9], [4, 4, 4]]


def link() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("a/1.png")
        info.create_system = 3
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    return buffer.getvalue()


def huge_png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))

    header = struct.pack(">2L5B", 12000, 12000, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 9000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (link(), "archive_path_refused"),
        (zipped({"../a/1.png": image()}), "archive_path_refused"),
        (zipped({"/a/1.png": image()}), "archive_path_refused"),
        (zipped({"a\x01/1.png": image()}), "archive_path_refused"),
        (zipped({"a/1.png": image(), "A/1.PNG": image()}), "duplicate_archive_member"),
        (zipped({"a/1.png": image()}, zipfile.ZIP_LZMA), "unsupported_compression"),
        (zipped({"1.png": image()}), "wrong_folder_layout"),
        (zipped({"a/1.png": image(), "b/c/2.png": image()}), "wrong_folder_layout"),
        (zipped({"a/1.png": image(), "a/notes.txt": b"x"}), "wrong_folder_layout"),
        (zipped({"0/1.png": image(), "00/1.png": image()}), "wrong_folder_layout"),
        (zipped({"0/1.png": image(), "999999999/1.png": image()}), "wrong_folder_layout"),
        (zipped({"a/1.png": image(), "a/inner.zip": zipped({"x": b"y"})}), "nested_archive"),
        (zipped({"a/": b"", "__MACOSX/x": b""}), "empty_dataset"),
        (zipped({"a/1.png": image(), "a/2.png": image(size=(8, 6))}), "image_sizes_differ"),
        (zipped({"a/1.png": huge_png()}), "image_too_large"),
        (zipped({"a/train/x/1.png": image(), "a/test/y/1.png": image()}), "several_splits"),
        (zipped({"train/1.png": image(), "test/2.png": image()}), "several_splits"),
        (zipped({"a/1.png": image(kind="GIF")}), "corrupt_dataset"),
        (zipped({"a/1.png": image(kind="BMP")}), "corrupt_dataset"),
        (zipped({"a/1.png": b""}), "corrupt_dataset"),
        (zipped({"a/1.png": image()[:45]}), "corrupt_dataset"),
        (zipped({"a/1.jpg": image(kind="JPEG")[:200]}), "corrupt_dataset"),
    ],
)
def test_odd_image_archives_are_refused(tmp_path, data, code):
    assert refusal(tmp_path, data) == code


def test_too_many_pixels_in_all_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(stacking, "MAX_TOTAL_BYTES", 1000)
    assert refusal(tmp_path, class_zip()) == "dataset_too_large"


def labelled(images: object = IMAGES, labels: object = LABELS, names: tuple[str, ...] | None = None) -> LabelledImages:
    return LabelledImages(torch.as_tensor(images), None if labels is None else torch.as_tensor(labels), names, "npz")


FLOATS = IMAGES / np.float32(255)


def spoiled(value: float) -> np.ndarray:
    copy = FLOATS.copy()
    copy[3, 1, 2, 3] = value
    return copy


@pytest.mark.parametrize(
    ("data", "changes", "code"),
    [
        (labelled(IMAGES[:0], LABELS[:0]), {}, "empty_dataset"),
        (labelled(IMAGES[:, :1]), {}, "wrong_channels"),
        (labelled(IMAGES), {"height": 9}, "wrong_image_size"),
        (labelled(IMAGES.transpose(0, 1, 3, 2)), {}, "wrong_image_size"),
        (labelled(spoiled(np.nan)), {}, "non_finite_pixels"),
        (labelled(spoiled(np.inf)), {}, "non_finite_pixels"),
        (labelled(spoiled(1.01)), {}, "pixels_out_of_range"),
        (labelled(spoiled(-0.01)), {}, "pixels_out_of_range"),
        (labelled(labels=None), {}, "labels_missing"),
        (labelled(labels=LABELS - 1), {}, "labels_out_of_range"),
        (labelled(labels=LABELS + 1), {}, "labels_out_of_range"),
        (labelled(labels=LABELS + 1), {"kind": "triggered"}, "labels_out_of_range"),
        (labelled(labels=LABELS * 0), {}, "single_class"),
        (labelled(), {"num_classes": 3}, "too_few_per_class"),
        (labelled(labels=LABELS.clip(max=0) + (np.arange(20) < 4)), {}, "too_few_per_class"),
        (labelled(names=("cat", "dog")), {"num_classes": 3}, "wrong_class_count"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(data, changes, code):
    with pytest.raises(DatasetRefusedError) as caught:
        check(data, **{**EXPECTED, **changes})
    assert caught.value.code == code


def test_too_few_names_the_classes():
    with pytest.raises(DatasetRefusedError, match=r"class 1 \(dog\) has 4.*add images") as caught:
        check(labelled(labels=(np.arange(20) < 4).astype(np.int64), names=("cat", "dog")), **EXPECTED)
    assert caught.value.classes == (1,)


def test_a_number_of_classes_above_the_labels_is_the_likelier_mistake():
    with pytest.raises(DatasetRefusedError, match=r"labels 0 to 1.*if it has 2, correct architecture.num_classes"):
        check(labelled(), **{**EXPECTED, "num_classes": 4})
    with pytest.raises(DatasetRefusedError, match=r"images of class 2$"):
        check(labelled(), **{**EXPECTED, "num_classes": 3})
    with pytest.raises(DatasetRefusedError, match="class 0 has 0"):
        check(labelled(labels=LABELS + 1), **{**EXPECTED, "num_classes": 4})


@pytest.mark.parametrize("labels", [None, LABELS * 0, LABELS])
def test_a_triggered_set_needs_neither_labels_nor_every_class(labels):
    check(labelled(labels=labels), **{**EXPECTED, "kind": "triggered", "num_classes": 10})


def test_numbered_folders_may_lack_high_classes_in_a_triggered_set():
    check(labelled(names=("0", "1")), **{**EXPECTED, "kind": "triggered", "num_classes": 10})


def test_channels_last_of_unusual_depth_is_explained():
    images = np.zeros((20, 8, 6, 2), np.uint8)
    with pytest.raises(DatasetRefusedError, match="transpose"):
        check(labelled(images), **{**EXPECTED, "in_channels": 2})


VALID = {
    "npz": npz(images=IMAGES[:4, :, :2, :2], labels=LABELS[:4]),
    "compressed": npz(compressed=True, images=IMAGES[:4, :, :2], labels=LABELS[:4]),
    "safetensors": safetensors_bytes({"images": IMAGES[:4, :, :2], "labels": LABELS[:4]}),
    "png": class_zip(count=1),
    "jpeg": zipped({"a/1.jpg": image(kind="JPEG")}, zipfile.ZIP_STORED),
}


@pytest.mark.parametrize("kind", sorted(VALID))
def test_every_truncated_dataset_is_refused(tmp_path, kind):
    for size in range(0, len(VALID[kind]), 5):
        refusal(tmp_path, VALID[kind][:size])


@pytest.mark.parametrize("kind", sorted(VALID))
@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_mutated_datasets_end_in_a_refusal_or_a_clean_read(tmp_path, kind, data):
    mutated = bytearray(VALID[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DatasetRefusedError):
        found = read_bytes(tmp_path, bytes(mutated))
        assert found.images_NCHW.dim() == 4


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_mutated_images_end_in_a_refusal_or_a_clean_read(tmp_path, suffix, data):
    body = bytearray(image(kind="PNG" if suffix == "png" else "JPEG"))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DatasetRefusedError), warnings.catch_warnings():
        warnings.simplefilter("error")
        read_bytes(tmp_path, zipped({f"a/1.{suffix}": bytes(body)}))


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_mutated_npy_headers_end_in_a_refusal_or_a_clean_read(tmp_path, data):
    buffer = io.BytesIO()
    np.save(buffer, IMAGES[:1])
    body = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, 127))] = data.draw(
            st.integers(0, 255) | st.sampled_from(list(b"0123456789()'\"{}<>L,"))
        )
    with contextlib.suppress(DatasetRefusedError):
        read_bytes(tmp_path, zipped({"images.npy": bytes(body)}))


def test_the_header_limit_is_numpys_own(tmp_path):
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (2,)}" + " " * arrays.MAX_HEADER_BYTES
    assert refusal(tmp_path, zipped({"images.npy": npy(header, b"xx")})) == "corrupt_dataset"
