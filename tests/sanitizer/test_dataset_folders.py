"""Zips as Hugging Face's imagefolder takes them: splits, metadata, what hubs add, and classes by name."""

import json

import pytest
import torch

from tests.sanitizer.test_dataset import image, read_bytes, refusal, zipped
from worker.sanitizer.dataset import metadata
from worker.sanitizer.refusals import DatasetRefusedError


@pytest.mark.parametrize("top", ["train/", "data/train/", "my-set-main/data/validation/"])
def test_one_split_is_looked_into(tmp_path, top):
    data = zipped({
        f"{top}dog/a.png": image(value=20), f"{top}cat/b.png": image(value=10), "README.md": b"# cats",
        ".gitattributes": b"*.png lfs",
    })  # fmt: skip
    found = read_bytes(tmp_path, data)
    assert found.class_names == ("cat", "dog")
    assert found.images_NCHW[:, 0, 0, 0].tolist() == [10, 20]


def csv(*rows):
    return "\n".join(["file_name,label,caption", *rows]).encode()


def jsonl(*rows):
    return b"\n".join(json.dumps(row).encode() for row in rows)


@pytest.mark.parametrize("top", ["", "train/"])
@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("metadata.csv", csv("b.png,cat,a cat", 'a.png,dog,"a dog, outside"')),
        ("metadata.jsonl", jsonl({"file_name": "b.png", "label": "cat"}, {"file_name": "a.png", "label": "dog"})),
    ],
)
def test_metadata_with_labels_decides_the_classes(tmp_path, top, name, table):
    data = zipped({f"{top}a.png": image(value=20), f"{top}b.png": image(value=10), f"{top}{name}": table})
    found = read_bytes(tmp_path, data)
    assert found.class_names == ("cat", "dog")
    assert found.labels_N.tolist() == [1, 0]
    assert found.images_NCHW[:, 0, 0, 0].tolist() == [20, 10]


def test_numbers_in_metadata_are_the_labels(tmp_path):
    table = jsonl({"file_name": "a.png", "label": 7}, {"file_name": "b.png", "label": 2})
    found = read_bytes(tmp_path, zipped({"a.png": image(), "b.png": image(), "metadata.jsonl": table}))
    assert found.labels_N.tolist() == [7, 2]


def test_metadata_without_labels_leaves_the_folders_to_decide(tmp_path):
    table = b"file_name,caption\ncat/a.png,hello\n"
    found = read_bytes(tmp_path, zipped({"cat/a.png": image(), "dog/b.png": image(), "metadata.csv": table}))
    assert found.class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ({"a.png": image(), "metadata.csv": csv("b.png,cat,x")}, "wrong_folder_layout"),
        ({"a.png": image(), "metadata.csv": b"file_name,label\n\xff\xfe,cat\n"}, "corrupt_dataset"),
        ({"a.png": image(), "metadata.csv": b"file_name,label\n" + b"a" * 200_000 + b",cat\n"}, "corrupt_dataset"),
        ({"a.png": image(), "metadata.csv": b"x,label\na.png,cat\n"}, "corrupt_dataset"),
        ({"a.png": image(), "metadata.jsonl": b"[" * 100_000}, "corrupt_dataset"),
        ({"a.png": image(), "metadata.jsonl": b"not json"}, "corrupt_dataset"),
        ({"a.png": image(), "metadata.jsonl": jsonl({"file_name": "a.png", "label": [1]})}, "corrupt_dataset"),
        ({"a.png": image(), "metadata.jsonl": jsonl({"file_name": "a.png", "label": True})}, "corrupt_dataset"),
        ({"a.png": image(), "metadata.jsonl": jsonl({"file_name": ["a.png"], "label": 1})}, "corrupt_dataset"),
        ({"a.png": image(), "metadata.jsonl": jsonl({"file_name": "a.png", "label": "\ud800"})}, "corrupt_dataset"),
        ({"a/metadata.csv": csv("x.png,c,"), "b/metadata.csv": csv("y.png,c,"), "a/x.png": image()}, "several_splits"),
        ({"train/cat/1.png": image(), "test/cat/2.png": image()}, "several_splits"),
        ({"metadata.csv": csv("a.png,cat,")}, "empty_dataset"),
    ],
)
def test_metadata_and_splits_that_leave_a_doubt_are_refused(tmp_path, members, code):
    assert refusal(tmp_path, zipped(members)) == code


def test_metadata_of_absurd_size_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(metadata, "MAX_BYTES", 10)
    assert refusal(tmp_path, zipped({"a.png": image(), "metadata.csv": csv("a.png,cat,")})) == "corrupt_dataset"
    monkeypatch.undo()
    monkeypatch.setattr(metadata, "MAX_MEMBERS", 1)
    table = csv("a.png,cat,", "b.png,cat,")
    assert refusal(tmp_path, zipped({"a.png": image(), "metadata.csv": table})) == "dataset_too_large"


def test_classes_are_matched_with_the_models_by_name(tmp_path):
    data = zipped({"cat/a.png": image(value=1), "dog/b.png": image(value=2), "unused/": b""})
    found = read_bytes(tmp_path, data, class_names=("ship", "dog", "cat"))
    assert found.labels_N.tolist() == [2, 1]
    assert found.class_names == ("ship", "dog", "cat")


def test_numbered_folders_are_in_the_models_order_already(tmp_path):
    data = zipped({"2/a.png": image(), "0/b.png": image()})
    found = read_bytes(tmp_path, data, class_names=("ship", "dog", "cat"))
    assert found.labels_N.tolist() == [0, 2]


def test_a_class_that_the_model_does_not_have_is_named(tmp_path):
    data = zipped({"Cat/a.png": image(), "dog/b.png": image()})
    with pytest.raises(DatasetRefusedError, match=r"\('Cat'\).*'ship', 'dog', 'cat'") as caught:
        read_bytes(tmp_path, data, class_names=("ship", "dog", "cat"))
    assert caught.value.code == "unknown_class_names"


def test_arrays_have_no_names_to_match(tmp_path):
    from tests.sanitizer.test_dataset import IMAGES, LABELS, npz  # noqa: PLC0415

    found = read_bytes(tmp_path, npz(images=IMAGES, labels=LABELS), class_names=("b", "a"))
    assert torch.equal(found.labels_N, torch.from_numpy(LABELS))
