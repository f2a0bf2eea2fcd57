"""What a preview finds, on a model that is known and sets that were spoiled in one way each."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from worker.sanitizer import agreement
from worker.sanitizer.findings import to_json
from worker.sanitizer.preview import preview
from worker.sanitizer.refusals import DatasetRefusedError


@pytest.fixture(scope="module")
def suspect(planted, tmp_path_factory):
    path = tmp_path_factory.mktemp("suspect") / "suspect.safetensors"
    save_file(planted.tensors, path)
    return path


@pytest.fixture
def look(planted, suspect, tmp_path):
    """Preview images and labels; `changes` are to the declarations."""

    def look(pixels=None, labels=None, *, architecture=None, checkpoint=suspect, **changes):
        clean = planted.images(120, seed=21)
        found = {"images": (clean.pixels_NCHW if pixels is None else pixels).numpy()}
        if labels is not False:
            found["labels"] = (clean.labels if labels is None else labels).numpy()
        np.savez(tmp_path / "clean.npz", **found)
        return preview(
            checkpoint_path=checkpoint,
            clean_path=tmp_path / "clean.npz",
            architecture=dataclasses.replace(planted.architecture, **(architecture or {})),
            input_spec=dataclasses.replace(planted.input_spec, **changes),
        )

    return look


def codes(found):
    return {(finding.severity, finding.code) for finding in found.findings}


def test_a_good_set_is_counted_and_nothing_is_found(look, suspect):
    found = look()
    assert codes(found) == set()
    assert not found.would_be_refused
    assert (found.num_images, found.num_left_out, found.format) == (120, 0, "npz")
    assert [(c.class_index, c.num_images, c.mostly_predicted) for c in found.classes] == [(i, 30, i) for i in range(4)]
    assert [(s.height, s.width, s.num_images) for s in found.sizes] == [(12, 12, 120)]
    assert found.accuracy.value > 0.9
    assert found.num_disagreements == round((1 - found.accuracy.value) * 120) == len(found.disagreements)
    assert found.normalisations[0].name == "declared"
    assert found.normalisations[0].accuracy == pytest.approx(found.accuracy.value)
    assert {file.role: file.sha256 for file in found.files}["checkpoint"] == (
        hashlib.sha256(suspect.read_bytes()).hexdigest()
    )
    assert json.loads(to_json(found))["kind"] == "preview"


def test_copies_are_counted_and_contradictions_named(look, planted):
    clean = planted.images(120, seed=21)
    pixels, labels = clean.pixels_NCHW.clone(), clean.labels.clone()
    pixels[100], labels[100] = pixels[4], labels[4]
    pixels[101], labels[101] = pixels[4], labels[4]
    pixels[102], labels[102] = pixels[5], (labels[5] + 1) % 4
    found = look(pixels, labels)
    assert dataclasses.astuple(found.duplicates)[:3] == (3, 2, 1)
    assert sorted(found.duplicates.examples) == [[4, 100, 101], [5, 102]]
    assert codes(found) == {("warning", "duplicate_images"), ("warning", "contradicting_labels")}


@pytest.mark.parametrize(
    ("mean", "std", "best"), [((0.0,), (0.001,), "half"), ((-4.0,), (0.1,), None), ((0.0,), (1 / 255,), None)]
)
def test_a_normalisation_that_does_not_fit_is_named_with_one_that_fits_better(look, mean, std, best):
    found = look(mean=mean, std=std)
    assert ("warning", "normalisation_mismatch") in codes(found)
    tried = {one.name: one.accuracy for one in found.normalisations}
    assert max(tried.values()) > tried["declared"] + 0.2
    assert best is None or tried[best] > 0.7


@pytest.mark.parametrize(("mean", "std"), [((1e300,), (1.0,)), ((0.5,), (1e-300,))])
def test_a_normalisation_beyond_all_numbers_is_a_finding(look, mean, std):
    found = look(mean=mean, std=std)
    assert {("refusal", "non_finite_outputs"), ("refusal", "clean_accuracy_near_chance")} <= codes(found)
    assert {one.confidence for one in found.disagreements} == {0.0}
    json.loads(to_json(found))


def test_an_alternative_is_what_declaring_it_would_have_been(look):
    tried = {one.name: one for one in look(mean=(3.0,), std=(0.1,)).normalisations}
    for name in ("none", "half", "mnist"):
        declared = look(mean=tuple(tried[name].mean), std=tuple(tried[name].std))
        assert declared.accuracy.value == pytest.approx(tried[name].accuracy, abs=0.01)


def test_classes_in_another_order_are_recognised(look, planted):
    found = look(labels=(planted.images(120, seed=21).labels + 1) % 4)
    assert {code for _, code in codes(found)} == {"class_order_mismatch", "clean_accuracy_near_chance"}
    (message,) = (finding.message for finding in found.findings if finding.code == "class_order_mismatch")
    assert "1 is its 0" in message


def test_labels_at_random_are_no_other_order(look):
    labels = torch.randint(4, (120,), generator=torch.Generator().manual_seed(0))
    assert codes(look(labels=labels)) == {("refusal", "clean_accuracy_near_chance")}


def test_wrong_sizes_are_counted_and_the_rest_is_refused_as_a_job_would(look, planted):
    found = look(planted.images(120, seed=21).pixels_NCHW[:, :, :9])
    assert codes(found) == {("refusal", "wrong_image_size")}
    assert (found.num_images, found.num_left_out, found.accuracy) == (0, 120, None)
    assert [(s.height, s.width, s.num_images) for s in found.sizes] == [(9, 12, 120)]


def test_a_declared_fit_lets_other_sizes_pass(look, planted):
    large = torch.nn.functional.interpolate(planted.images(120, seed=21).pixels_NCHW, size=(24, 30))
    found = look(large, resize="stretch")
    assert (found.num_images, found.num_left_out) == (120, 0)
    assert found.accuracy.value > 0.8


@pytest.mark.parametrize(
    ("labels", "code"),
    [
        (False, "labels_missing"),
        (torch.full((120,), 9), "labels_out_of_range"),
        (torch.zeros(120, dtype=torch.int64), "single_class"),
        (torch.arange(120) % 3, "too_few_per_class"),
    ],
)
def test_what_a_job_would_refuse_is_a_finding(look, labels, code):
    assert ("refusal", code) in codes(look(labels=labels))


def test_a_model_that_does_not_load_leaves_the_sets_own_part(look, tmp_path):
    (tmp_path / "garbage").write_bytes(b"\x80\x04 a pickle" * 9)
    found = look(checkpoint=tmp_path / "garbage")
    assert codes(found) == {("refusal", "bare_pickle")}
    assert sum(one.num_images for one in found.classes) == 120
    assert found.accuracy is None
    assert found.would_be_refused


def test_a_set_that_cannot_be_read_is_refused(planted, suspect, tmp_path):
    (tmp_path / "clean").write_bytes(b"PAR1")
    with pytest.raises(DatasetRefusedError):
        preview(
            checkpoint_path=suspect,
            clean_path=tmp_path / "clean",
            architecture=planted.architecture,
            input_spec=planted.input_spec,
        )


def test_few_images_of_many_are_tried_and_from_all_over_the_set(look, monkeypatch):
    monkeypatch.setattr(agreement, "MAX_IMAGES_TO_TRY", 50)
    assert {one.num_images for one in look().normalisations} == {40}


def test_the_names_of_the_classes_are_told(look):
    found = look(architecture={"class_names": ("a", "b", "c", "d")})
    assert [one.name for one in found.classes] == [None] * 4  # arrays have no names; the labels are numbers
