"""Parquet as Hugging Face writes it, and hostile Parquet; pyarrow writes both."""

import contextlib
import io
import json
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.sanitizer.test_dataset import image, read_bytes, refusal, zipped
from worker.sanitizer.dataset import parquet, parquet_pages
from worker.sanitizer.refusals import DatasetRefusedError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

NAMES = ["cat", "dog", "ship"]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def features(**more):
    label = {"names": NAMES, "_type": "ClassLabel"}
    return {"info": {"features": {"image": {"_type": "Image"}, "label": label} | more}}


def table(labels=(2, 0, 1, 2), noted=None, column="image", data=None, **columns):
    """A table in the layout of Hugging Face's library; image i is of value i."""
    count = len(labels)
    data = [image(value=i) for i in range(count)] if data is None else data
    images = pa.array([{"bytes": d, "path": f"{i}.png"} for i, d in enumerate(data)], IMAGE)
    made = pa.table({column: images, "label": pa.array(labels, pa.int64())} | columns)
    noted = features() if noted is None else noted
    return made.replace_schema_metadata({"huggingface": json.dumps(noted)} if noted else {})


def written(made, **options):
    buffer = io.BytesIO()
    pq.write_table(made, buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zstd"},
        {"compression": "none", "row_group_size": 1},
        {"use_dictionary": False, "data_page_version": "2.0"},
        {"use_dictionary": True, "write_page_index": True, "write_page_checksum": True},
        {"row_group_size": 3, "compression": "gzip"},
    ],
)
def test_images_labels_and_names_are_read_however_the_pages_are_written(tmp_path, options):
    found = read_bytes(tmp_path, written(table(), **options), in_channels=3)
    assert found.format == "parquet"
    assert found.images_NCHW[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert found.labels_N.tolist() == [2, 0, 1, 2]
    assert found.class_names == tuple(NAMES)
    assert read_bytes(tmp_path, written(table(), **options), class_names=("dog", "ship", "cat")).labels_N.tolist() == (
        [1, 2, 0, 1]
    )


def test_more_rows_than_a_batch_are_all_read(tmp_path):
    labels = [i % 3 for i in range(150)]
    found = read_bytes(tmp_path, written(table(labels, data=[image(value=i) for i in range(150)])))
    assert found.labels_N.tolist() == labels
    assert found.images_NCHW[:, 0, 0, 0].tolist() == list(range(150))


@pytest.mark.parametrize(
    "made",
    [
        table(noted={}),
        table(noted={"info": {"features": 3}}),
        table(column="img", noted={}),
        table(extra=pa.array(["a", "b", "c", "d"]), noted={}),
    ],
)
def test_without_a_note_of_names_the_labels_are_numbers(tmp_path, made):
    found = read_bytes(tmp_path, written(made))
    assert (found.labels_N.tolist(), found.class_names) == ([2, 0, 1, 2], None)


def test_the_only_class_label_is_the_label(tmp_path):
    noted = {"info": {"features": {"breed": {"names": NAMES, "_type": "ClassLabel"}}}}
    made = table(noted=noted).rename_columns(["image", "breed"]).replace_schema_metadata(
        {"huggingface": json.dumps(noted)}
    )  # fmt: skip
    assert read_bytes(tmp_path, written(made)).class_names == tuple(NAMES)


def test_images_may_have_no_labels(tmp_path):
    assert read_bytes(tmp_path, written(table().drop_columns(["label"]))).labels_N is None


def test_the_shards_of_one_split_are_one_set(tmp_path):
    shards = {
        "data/train-00001-of-00002.parquet": written(table((1, 1), data=[image(value=8), image(value=9)])),
        "data/train-00000-of-00002.parquet": written(table()),
        "README.md": b"---\nlicense: mit\n---",
    }
    found = read_bytes(tmp_path, zipped(shards))
    assert found.images_NCHW[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 8, 9]
    assert found.labels_N.tolist() == [2, 0, 1, 2, 1, 1]


def test_sizes_are_fitted_and_gray_is_repeated(tmp_path):
    from tests.sanitizer.test_dataset_fitting import rule  # noqa: PLC0415

    data = [image("L", size=(20 + i, 30)) for i in range(4)]
    found = read_bytes(tmp_path, written(table(data=data)), in_channels=3, rule=rule(resize=10, crop="center"))
    assert found.images_NCHW.shape == (4, 3, 8, 8)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (written(table(labels=())), "empty_dataset"),
        (written(pa.table({"a": [1]})), "wrong_parquet_layout"),
        (written(pa.table({"image": [b"x"], "label": [1]})), "wrong_parquet_layout"),
        (written(table(other=table()["image"])), "wrong_parquet_layout"),
        (written(table(other=pa.array([[1]] * 4))), "wrong_parquet_layout"),
        (written(table(noted={}, labels_=pa.array([1] * 4)).rename_columns(["image", "label", "labels"])),
         "wrong_parquet_layout"),
        (written(pa.table({f"c{i}": [1] for i in range(80)})), "wrong_parquet_layout"),
        (written(table(data=[None] * 4)), "wrong_parquet_layout"),
        (written(table(noted=features(label={"names": [1], "_type": "ClassLabel"}))), "wrong_parquet_layout"),
        (written(table(noted=features(label={"names": ["\ud800"], "_type": "ClassLabel"}))), "wrong_parquet_layout"),
        (written(table(labels=(1, None, 1, 1))), "wrong_label_array"),
        (written(pa.table({"image": table()["image"], "label": ["cat"] * 4})), "wrong_label_array"),
        (written(table(data=[b"GIF89a"] * 4)), "corrupt_dataset"),
        (written(table())[:-1], "corrupt_dataset"),
        (b"PAR1" + b"\xff\xff\xff\x7fPAR1", "dataset_too_large"),
        (b"PAR1\x00\x00\x10\x00PAR1", "corrupt_dataset"),
        (b"PAR1" + b"\x15" * 40 + (40).to_bytes(4, "little") + b"PAR1", "corrupt_dataset"),
        (zipped({"train-0.parquet": written(table()), "test-0.parquet": written(table())}), "several_splits"),
        (zipped({"train-0.parquet": written(table()), "train-1.parquet": written(table(noted={}))}),
         "wrong_parquet_layout"),
        (zipped({"a.parquet": b"PAR1"}), "corrupt_dataset"),
        (zipped({"a.parquet": written(table()), "cat/1.png": image()}), "wrong_folder_layout"),
    ],
)  # fmt: skip
def test_odd_parquet_is_refused(tmp_path, data, code):
    assert refusal(tmp_path, data) == code


def test_labels_beyond_the_names_are_refused_when_names_count(tmp_path):
    with pytest.raises(DatasetRefusedError) as caught:
        read_bytes(tmp_path, written(table(labels=(1, 2, 3, -1))), class_names=("cat", "dog", "ship"))
    assert caught.value.code == "labels_out_of_range"


def test_rows_and_bytes_have_limits(tmp_path, monkeypatch):
    data = written(table())
    for module, name, value in (
        (parquet, "MAX_ROWS", 3), (parquet, "MAX_BYTES", 100), (parquet_pages, "MAX_PAGE_BYTES", 100),
        (parquet_pages, "MAX_FOOTER_BYTES", 100),
    ):  # fmt: skip
        with monkeypatch.context() as limits:
            limits.setattr(module, name, value)
            assert refusal(tmp_path, data) == "dataset_too_large"


def test_a_page_bomb_is_refused_by_its_header(tmp_path):
    bomb = written(table(labels=[0] * 9, data=[b"\0" * (30 << 20)] * 9), compression="zstd", use_dictionary=False)
    assert len(bomb) < 200_000
    assert refusal(tmp_path, bomb) == "dataset_too_large"


def test_one_large_value_of_many_rows_does_not_fill_the_memory(tmp_path):
    # 100,000 rows of 8 MiB by one entry of a dictionary: they come in batches of 16 and the first one is refused.
    made = table(labels=[0] * 100_000, data=[b"\0" * (8 << 20)] + [None] * 99_999)
    one = made["image"].combine_chunks().field("bytes")[:1]
    dictionary = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), one)
    images = pa.StructArray.from_arrays([dictionary, pa.nulls(100_000, pa.string())], ["bytes", "path"])
    data = written(pa.table({"image": images, "label": made["label"]}), store_schema=False, compression="zstd")
    assert len(data) < 1_000_000
    assert refusal(tmp_path, data) == "corrupt_dataset"


def test_a_missing_pyarrow_is_said_so(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert refusal(tmp_path, written(table())) == "parquet_not_installed"


VALID = written(table(), compression="snappy")


def test_every_truncated_file_is_refused(tmp_path):
    for size in range(0, len(VALID), 7):
        refusal(tmp_path, VALID[:size])


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_mutated_files_end_in_a_refusal_or_a_clean_read(tmp_path, data):
    mutated = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DatasetRefusedError):
        assert isinstance(read_bytes(tmp_path, bytes(mutated)).images_NCHW, torch.Tensor)


@pytest.mark.parametrize("options", [{}, {"row_group_size": 1}, {"use_dictionary": False}, {"compression": "zstd"}])
def test_chunks_lie_where_arrow_says_that_they_lie(options):
    data = written(table(), **options)
    told = pq.read_metadata(io.BytesIO(data))
    expected = []
    for group in range(told.num_row_groups):
        for column in range(told.num_columns):
            chunk = told.row_group(group).column(column)
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            expected.append((chunk.path_in_schema, start, chunk.total_compressed_size))
    found = parquet_pages.chunks(io.BytesIO(data), len(data))
    assert [(chunk.path, chunk.start, chunk.num_bytes) for chunk in found] == expected


def test_histograms_of_a_wrong_length_are_refused_and_end_no_process(tmp_path):
    data = written(table(), compression="none")
    footer_bytes = int.from_bytes(data[-8:-4], "little")
    footer = data[-8 - footer_bytes : -8]
    # SizeStatistics of `image.bytes`: a list of three counts of definition levels becomes one of two.
    told = bytes([0x19, 0x36, 0, 0, 8])
    assert told in footer
    spoilt = footer.replace(told, bytes([0x19, 0x26, 0, 8]))
    data = data[: -8 - footer_bytes] + spoilt + len(spoilt).to_bytes(4, "little") + b"PAR1"
    path = tmp_path / "upload"
    path.write_bytes(data)
    script = (
        "import sys; from pathlib import Path; from worker.sanitizer import dataset\n"
        "from worker.sanitizer.refusals import DatasetRefusedError\n"
        "try: dataset.read(Path(sys.argv[1]), in_channels=3)\n"
        "except DatasetRefusedError as error: print(error.code)"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "corrupt_dataset"), done.stderr[-500:]
