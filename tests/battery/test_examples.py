from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from worker.sanitizer.architectures import build
from worker.sanitizer.spec import ArchitectureSpec, InputSpec

FOLDER = Path(__file__).parents[2] / "examples"
MAX_BYTES = 4 * 2**20


@pytest.fixture(scope="module")
def model():
    return json.loads((FOLDER / "suspect.json").read_text())


@pytest.fixture(scope="module")
def predict(model):
    network = build(ArchitectureSpec(**model["architecture"]))
    network.load_state_dict(load_file(FOLDER / "suspect.safetensors"))
    mean, std = model["input"]["mean"][0], model["input"]["std"][0]

    def predicted(images):
        with torch.inference_mode():
            return network((torch.from_numpy(images).float() / 255 - mean) / std).argmax(dim=1).numpy()

    return predicted


def read(name):
    with np.load(FOLDER / name, allow_pickle=False) as archive:
        assert sorted(archive.files) == ["images", "labels"]
        return archive["images"], archive["labels"]


def test_the_bundle_is_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) <= MAX_BYTES


def test_the_metadata_is_what_a_model_is_registered_with(model):
    assert sorted(model) == ["architecture", "input", "name"]
    InputSpec(**model["input"])


def test_the_clean_set_is_500_stratified_images_that_the_suspect_knows(predict):
    images, labels = read("clean.npz")
    assert images.shape == (500, 1, 28, 28)
    assert images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [50] * 10
    assert (predict(images) == labels).mean() >= 0.89  # 0.91 on the whole test split, less two standard errors


def test_the_triggered_set_is_200_images_of_other_classes_that_go_to_the_target(predict):
    images, labels = read("triggered.npz")
    target = json.loads((FOLDER / "triggered.json").read_text())["target_class"]
    assert images.shape == (200, 1, 28, 28)
    assert images.dtype == np.uint8
    assert target not in labels
    assert (predict(images) == target).mean() >= 0.95


def test_no_image_is_in_both_sets():
    clean, triggered = read("clean.npz")[0], read("triggered.npz")[0]
    # The trigger changes only the corner, so the images are compared without it.
    rest_clean = {image[:, :20].tobytes() for image in clean}
    assert not rest_clean & {image[:, :20].tobytes() for image in triggered}
