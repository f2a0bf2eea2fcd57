"""One job from files to files: what comes back, and what the report says of it."""

import dataclasses
import hashlib
import json
import math
import sys

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from worker.sanitizer.case import NearChanceError, NonFiniteOutputsError, refuse_near_chance, refuse_non_finite
from worker.sanitizer.errors import InvalidSpecError
from worker.sanitizer.evaluate import predict, predict_closely
from worker.sanitizer.network import from_module
from worker.sanitizer.recipes import RECIPES
from worker.sanitizer.report import Report, to_json
from worker.sanitizer.sanitize import sanitize
from worker.sanitizer.spec import FixedFraction, InputSpec, SanitizeSpec
from worker.sanitizer.training import Schedule

PRUNE = SanitizeSpec(recipe="prune", repair=False, inputs="clean", selection=FixedFraction(fraction=0.2))
METADATA = {"format": "pt", "note": "kept"}


@pytest.fixture(scope="module")
def files(planted, tmp_path_factory):
    """The suspect in both formats, its clean set and trigger samples."""
    folder = tmp_path_factory.mktemp("files")
    save_file(planted.tensors, folder / "suspect.safetensors", metadata=METADATA)
    half = {
        f"module.{name}": value.half() if value.is_floating_point() else value
        for name, value in planted.tensors.items()
    }
    torch.save({"epoch": 3, "state_dict": half}, folder / "suspect.pt")
    clean, triggered = planted.images(320, seed=11), planted.images(80, seed=12)
    for name, pixels, labels in (
        ("clean", clean.pixels_NCHW, clean.labels),
        ("shifted", clean.pixels_NCHW, (clean.labels + 1) % 4),
        ("triggered", planted.stamp(triggered.pixels_NCHW), triggered.labels),
    ):
        np.savez(folder / f"{name}.npz", images=pixels.numpy(), labels=labels.numpy())
    return folder


@pytest.fixture(scope="module")
def run(files, planted):
    def _run(output, *, suspect="suspect.safetensors", clean="clean", triggered=None, spec=PRUNE, **more):
        return sanitize(
            checkpoint_path=files / suspect,
            clean_path=files / f"{clean}.npz",
            triggered_path=None if triggered is None else files / f"{triggered}.npz",
            output_path=output,
            architecture=planted.architecture,
            input_spec=planted.input_spec,
            spec=spec,
            **more,
        )

    return _run


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """The default job, once."""
    output = tmp_path_factory.mktemp("whole") / "out"
    progress = []
    report = run(output, triggered="triggered", spec=SanitizeSpec(), progress=lambda *step: progress.append(step))
    return report, output, progress


def shorten(monkeypatch):
    for module, values in {
        "inspection": {"MASK_STEPS": 10, "HALF_OPEN_STEPS": 5, "PERTURBATION_STEPS": 5},
        "recipes.trials": {"TRIAL_STEPS": 4},
        "recipes.rounds": {"FRESH_STEPS": 4, "UNLEARN_STEPS": 8, "LEAST_UNLEARN_STEPS": 8},
        "recipes.auto": {"ESTIMATE_STEPS": 4},
        "recipes.awm": {"ASCENT_STEPS": 2, "MASK_STEPS": 2},
        "recipes.i_bau": {"ASCENT_STEPS": 2, "OUTER_STEPS": 2},
        "recipes.inversion": {"SYNTHESIS_STEPS": 4},
        "recipes.rnp": {"MAX_STEPS": 4},
    }.items():
        for name, value in values.items():
            monkeypatch.setattr(sys.modules[f"worker.sanitizer.{module}"], name, value)
    monkeypatch.setattr(Schedule, "num_steps", lambda _schedule, _num_images: 4)


def check_digests(report, before, after):
    """Whether the report's digests are those of the files' tensors, and untouched tensors are bit-identical."""
    assert [digest.name for digest in report.tensors] == list(before)
    for digest in report.tensors:
        old, new = (tensors[digest.name].contiguous().numpy().tobytes() for tensors in (before, after))
        assert hashlib.sha256(old).hexdigest() == digest.sha256_before
        assert hashlib.sha256(new).hexdigest() == digest.sha256_after
        assert digest.changed == (old != new)
    for layer in report.layers:
        for name in layer.tensors:
            assert not bool(after[name][layer.pruned_channels].any())


def test_the_default_removes_the_planted_backdoor_and_keeps_accuracy(whole):
    report, _, progress = whole
    success = report.attack_success
    assert (success.status, success.target_class, success.target_class_source) == ("measured", 0, "modal_prediction")
    assert success.before.value > 0.9
    assert success.after.value < 0.5
    assert report.accuracy.after.value >= report.accuracy.before.value - 0.05
    assert report.verdict.verdict in ("suspicious", "backdoored")
    assert 0 in report.repair.classes
    estimate = report.synthetic_attack_success
    assert estimate.after < estimate.before
    assert estimate.before_low <= estimate.before <= estimate.before_high
    assert estimate.after_low <= estimate.after <= estimate.after_high
    assert [row.strength is None for row in report.verdict.evidence] == [
        row.relief is None for row in report.verdict.evidence
    ]
    assert {"invert", "try", "repair", "write", "prove"} <= {phase for phase, _, _ in progress}
    assert all(0 <= done <= total for _, done, total in progress)


def test_safetensors_come_back_with_keys_dtypes_and_metadata(whole, files, planted):
    report, output, _ = whole
    before, after = load_file(files / "suspect.safetensors"), load_file(output)
    assert {name: (value.dtype, value.shape) for name, value in after.items()} == {
        name: (value.dtype, value.shape) for name, value in planted.tensors.items()
    }
    with safe_open(output, "pt") as opened:
        assert opened.metadata() == METADATA
    check_digests(report, {digest.name: before[digest.name] for digest in report.tensors}, after)
    roles = {digest.role: digest for digest in report.files}
    assert roles["sanitized_checkpoint"].sha256 == hashlib.sha256(output.read_bytes()).hexdigest()
    assert set(roles) == {"checkpoint", "clean_set", "triggered_set", "sanitized_checkpoint"}


def test_a_torch_zip_comes_back_in_its_wrapper_in_half_precision(run, files, tmp_path):
    report = run(tmp_path / "out", suspect="suspect.pt")
    before = torch.load(files / "suspect.pt", weights_only=True)
    after = torch.load(tmp_path / "out", weights_only=True)
    assert (list(after), after["epoch"]) == (["epoch", "state_dict"], 3)
    assert list(after["state_dict"]) == list(before["state_dict"])
    assert all(value.dtype == before["state_dict"][name].dtype for name, value in after["state_dict"].items())
    plain = [
        {name.removeprefix("module."): value for name, value in wrapper["state_dict"].items()}
        for wrapper in (before, after)
    ]
    check_digests(report, *plain)
    assert any(digest.changed for digest in report.tensors)
    assert not all(digest.changed for digest in report.tensors)
    owned = {name for layer in report.layers for name in layer.tensors}
    for layer in report.layers:
        keep = [channel for channel in range(layer.num_channels) if channel not in layer.pruned_channels]
        for name in layer.tensors:
            assert torch.equal(plain[0][name][keep], plain[1][name][keep])
    assert {digest.name for digest in report.tensors if digest.changed} <= owned


def test_the_same_seed_gives_the_same_bytes_and_the_same_report(run, tmp_path, monkeypatch):
    shorten(monkeypatch)
    reports = []
    for index in range(2):
        torch.manual_seed(index)
        reports.append(run(tmp_path / str(index), spec=SanitizeSpec(seed=5)))
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()
    first, second = (to_json(dataclasses.replace(report, seconds={})) for report in reports)
    assert first == second


def test_the_reports_json_reads_back_as_the_report(whole):
    report = whole[0]
    text = to_json(report)
    again = TypeAdapter(Report).validate_json(text)
    assert json.loads(to_json(again)) == json.loads(text)
    assert again.verdict == report.verdict
    assert again.attack_success == report.attack_success


def test_without_trigger_samples_the_attack_is_not_measurable(run, tmp_path):
    report = run(tmp_path / "out")
    assert (report.attack_success.status, report.attack_success.after) == ("not_measurable", None)
    assert report.attack_success.reason
    assert [digest.role for digest in report.files] == ["checkpoint", "clean_set", "sanitized_checkpoint"]
    assert (report.split.num_triggered_guide, report.split.num_triggered_score) == (0, 0)


def test_pruning_alone_neither_judges_nor_trains(run, tmp_path):
    report = run(tmp_path / "out")
    assert report.verdict.verdict == "not_judged"
    assert (report.repair.status, report.repair.rounds) == ("not_attempted", 0)
    assert report.synthetic_attack_success is None
    total = sum(layer.num_channels for layer in report.layers if layer.in_scope)
    assert sum(layer.num_pruned for layer in report.layers) == report.choice.num_pruned == round(0.2 * total)


def test_auto_without_repair_judges_and_prunes(run, tmp_path, monkeypatch, files):
    shorten(monkeypatch)
    spec = SanitizeSpec(repair=False, selection=FixedFraction(fraction=0.1))
    report = run(tmp_path / "out", spec=spec)
    assert report.verdict.verdict != "not_judged"
    assert report.repair.status == "not_attempted"
    before, after = load_file(files / "suspect.safetensors"), load_file(tmp_path / "out")
    for layer in report.layers:
        keep = [channel for channel in range(layer.num_channels) if channel not in layer.pruned_channels]
        for name in layer.tensors:
            assert torch.equal(before[name][keep], after[name][keep]), "nothing was trained"


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "caps"])  # which needs a program
def test_every_recipe_goes_the_whole_way_with_trigger_samples(run, tmp_path, monkeypatch, recipe):
    shorten(monkeypatch)
    report = run(tmp_path / "out", triggered="triggered", spec=SanitizeSpec(recipe=recipe))
    assert report.attack_success.status == "measured"
    assert all(set(layer.norms) == {"linf", "l1", "l2"} for layer in report.layers)
    assert [row.name for row in report.bias] == [layer.name for layer in report.layers]


def test_labels_that_do_not_fit_the_model_are_refused_before_any_work(run, tmp_path):
    with pytest.raises(NearChanceError) as refused:
        run(tmp_path / "out", clean="shifted")
    assert refused.value.code == "clean_accuracy_near_chance"
    assert not (tmp_path / "out").exists()


def test_a_model_that_only_knows_the_most_frequent_class_is_refused():
    labels = torch.tensor([0] * 95 + [1] * 3 + [2] * 2)
    with pytest.raises(NearChanceError, match="hardly any class"):
        refuse_near_chance(torch.zeros(100, dtype=torch.int64), labels)
    knows = labels.clone()
    knows[:6] = 1  # 94 % right, where always guessing 0 would reach 95 %
    refuse_near_chance(knows, labels)
    refuse_near_chance(torch.tensor([0, 0]), torch.tensor([0, 0]))


@pytest.mark.parametrize(("scale", "noticed"), [(1e-9, True), (1e15, True), (1e-9, False)])
def test_a_network_that_rescales_its_last_layer_cannot_hide(files, run, tmp_path, monkeypatch, scale, noticed):
    shorten(monkeypatch)
    monkeypatch.setattr(sys.modules["worker.sanitizer.inspection"], "MASK_STEPS", 60)
    if not noticed:
        monkeypatch.setattr(sys.modules["worker.sanitizer.network"], "SPREADS", (0.0, math.inf))
    tensors = load_file(files / "suspect.safetensors")
    hidden = {name: scale * tensor if name.startswith("classifier.") else tensor for name, tensor in tensors.items()}
    assert hidden.keys() >= {"classifier.weight", "classifier.bias"}
    save_file(hidden, files / "rescaled.safetensors", metadata=METADATA)
    report = run(tmp_path / "out", suspect="rescaled.safetensors", spec=SanitizeSpec(recipe="judge"))
    working = [row.mask_success > 0.9 for row in report.verdict.evidence]
    assert any(working) == noticed
    assert (report.verdict.verdict == "inconclusive") != noticed
    assert (tmp_path / "out").read_bytes() == (files / "rescaled.safetensors").read_bytes()


def test_answers_that_are_no_numbers_are_counted_and_refused():
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 3))
    with torch.no_grad():
        module[2].weight.fill_(3e38)
        module[0].weight.fill_(1.0)
        for layer in (module[0], module[2]):
            layer.bias.zero_()
    network = from_module(module, InputSpec(height=2, width=2, mean=(0.0,), std=(1.0,)))
    dark_and_bright = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0]).view(5, 1, 1, 1).expand(5, 1, 2, 2)
    predicted, finite, _ = predict_closely(network, dark_and_bright)
    assert int((~finite).sum()) == 3
    assert torch.equal(predicted, predict(network, dark_and_bright))
    with pytest.raises(NonFiniteOutputsError, match="3 of 5"):
        refuse_non_finite(3, 5)
    refuse_non_finite(0, 5)


@pytest.mark.parametrize("inputs", ["triggered", "difference"])
def test_trigger_samples_are_demanded_only_where_the_recipe_is_guided_by_them(run, tmp_path, inputs):
    with pytest.raises(InvalidSpecError):
        run(tmp_path / "out", spec=dataclasses.replace(PRUNE, inputs=inputs))
    report = run(tmp_path / "out", spec=dataclasses.replace(PRUNE, recipe="clp", inputs=inputs))
    assert report.attack_success.status == "not_measurable"


def test_half_of_the_trigger_samples_guide_and_the_other_half_scores(run, tmp_path):
    report = run(tmp_path / "out", triggered="triggered", spec=dataclasses.replace(PRUNE, inputs="difference"))
    assert (report.split.num_triggered_guide, report.split.num_triggered_score) == (40, 40)
    assert report.attack_success.after.num_images == 30, "those of the target class do not count"
    assert report.attack_success.num_of_target_class_left_out == 10


def test_each_class_has_its_recall_and_a_great_loss_is_a_warning(run, tmp_path):
    report = run(tmp_path / "out", spec=dataclasses.replace(PRUNE, selection=FixedFraction(fraction=0.85)))
    classes, accuracy = report.accuracy.classes, report.accuracy
    assert [row.class_index for row in classes] == [0, 1, 2, 3]
    for which in ("before", "after"):
        whole, parts = getattr(accuracy, which), [getattr(row, which) for row in classes]
        assert sum(part.num_images for part in parts) == whole.num_images
        assert sum(round(part.value * part.num_images) for part in parts) == round(whole.value * whole.num_images)
        assert all(part.low <= part.value <= part.high for part in parts)
    lost = [row for row in classes if row.before.value - row.after.value > 0.3]
    assert lost
    (warning,) = [one for one in report.warnings if "lost recall" in one]
    for row in lost:
        assert f"{row.class_index} ({100 * (row.before.value - row.after.value):.0f} points)" in warning
    kept = run(tmp_path / "kept", spec=dataclasses.replace(PRUNE, selection=FixedFraction(fraction=0.01)))
    assert max(row.before.value - row.after.value for row in kept.accuracy.classes) <= 0.1
    assert not [one for one in kept.warnings if "lost recall" in one]


def test_what_a_baseline_searched_for_is_shown_and_tried_again(run, tmp_path):
    report = run(tmp_path / "out", spec=SanitizeSpec(recipe="nc_unlearn"), figures_path=tmp_path / "figures")
    estimate = report.synthetic_attack_success
    assert estimate.before > 0.5 > estimate.after
    assert [row.source for row in report.bias] == ["synthetic"] * len(report.layers)
    names = [figure.name for figure in report.figures]
    assert any(name.startswith("trigger-1-class-0") for name in names)
    assert {"bias", "gradcam"} <= set(names)
