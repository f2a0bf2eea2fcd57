"""Jobs that bound activations: what is scored and reported is the file that comes back, and it is a suspect again."""

import dataclasses
import hashlib
import sys

import numpy as np
import pytest
import torch
from torch import nn

from tests.sanitizer.programs.onnx_files import export, session
from worker.sanitizer.report import Verdict, to_json
from worker.sanitizer.sanitize import sanitize
from worker.sanitizer.spec import ArchitectureSpec, SanitizeSpec

FROM_FILE = ArchitectureSpec(source="file", num_classes=4, in_channels=1)
CAPS = SanitizeSpec(recipe="caps")


@pytest.fixture(scope="module")
def folder(planted, modules, tmp_path_factory):
    """The suspect as both kinds of program, with batch norm, and its images."""
    made = tmp_path_factory.mktemp("capped")
    module = modules[True]
    program = torch.export.export(module, (torch.zeros(2, 1, 12, 12),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, made / "suspect.pt2")
    export(module, made / "suspect.onnx", shape=(1, 12, 12))
    clean, triggered = planted.images(320, seed=11), planted.images(160, seed=12)
    np.savez(made / "clean.npz", images=clean.pixels_NCHW.numpy(), labels=clean.labels.numpy())
    stamped = planted.stamp(triggered.pixels_NCHW)
    np.savez(made / "triggered.npz", images=stamped.numpy(), labels=triggered.labels.numpy())
    return made


@pytest.fixture
def run(folder, planted):
    def _run(suspect, output, spec=CAPS, **more):
        return sanitize(
            checkpoint_path=folder / suspect if isinstance(suspect, str) else suspect,
            clean_path=folder / "clean.npz",
            triggered_path=folder / "triggered.npz",
            output_path=output,
            architecture=FROM_FILE,
            input_spec=planted.input_spec,
            spec=spec,
            target_class=planted.target,
            **more,
        )

    return _run


def answers(path, pixels):
    """What torch or ONNX Runtime says of the file."""
    inputs = (pixels - 0.5) / 0.25
    if path.suffix == ".pt2":
        with torch.no_grad():
            return torch.export.load(path).module()(inputs).argmax(dim=1)
    return torch.from_numpy(session(path.read_bytes()).run(None, {"images": inputs.numpy()})[0]).argmax(dim=1)


@pytest.mark.parametrize("suspect", ["suspect.pt2", "suspect.onnx"])
def test_the_file_that_comes_back_is_the_one_that_was_scored(run, planted, tmp_path, suspect):
    output = tmp_path / suspect
    report = run(suspect, output, figures_path=tmp_path / "figures")
    assert report.caps.status == "added"
    assert report.attack_success.before.value > 0.95
    assert report.attack_success.after.value < 0.25
    assert report.accuracy.after.value >= report.accuracy.before.value - 0.05
    fresh = planted.images(200, seed=21)
    other = fresh.take((fresh.labels != planted.target).nonzero().flatten())
    followed = (answers(output, planted.stamp(other.pixels_NCHW)) == planted.target).double().mean()
    assert followed < 0.25, "in the runtime of the file's owner too"
    assert not any(digest.changed for digest in report.tensors), "no weight was touched"
    assert any("Operators were added" in warning for warning in report.warnings)
    assert (tmp_path / "figures").exists()
    to_json(report)


def test_the_report_names_each_layer_its_value_and_the_digest_of_its_bounds(run, tmp_path):
    output = tmp_path / "out.pt2"
    report = run("suspect.pt2", output)
    program = torch.export.load(output)
    constants = {spec.arg.name: program.constants[spec.target] for spec in program.graph_signature.input_specs
                 if spec.target in program.constants}  # fmt: skip
    stored = {node.name: constants[node.args[1].name] for node in program.graph.nodes
              if node.target is torch.ops.aten.minimum.default}  # fmt: skip
    assert [layer.name for layer in report.caps.layers] == [layer.name for layer in report.layers]
    assert {layer.value for layer in report.caps.layers} == stored.keys()
    for layer in report.caps.layers:
        bounds = stored[layer.value].flatten()
        assert len(bounds) == layer.num_channels
        assert hashlib.sha256(bounds.numpy().tobytes()).hexdigest() == layer.sha256


def test_what_came_back_can_be_sent_again(run, tmp_path):
    first = run("suspect.pt2", tmp_path / "once.pt2")
    second = run(tmp_path / "once.pt2", tmp_path / "twice.pt2")
    assert second.accuracy.before == first.accuracy.after
    assert second.attack_success.before == first.attack_success.after
    assert [layer.name for layer in second.layers] == [layer.name for layer in first.layers]


def test_the_same_job_gives_the_same_bytes(run, tmp_path):
    for suspect in ("suspect.pt2", "suspect.onnx"):
        outputs = [tmp_path / f"{attempt}-{suspect}" for attempt in range(2)]
        for output in outputs:
            run(suspect, output)
        assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_compared_recipes_start_from_the_suspect_whether_bounds_were_the_main_one_or_not(run, tmp_path):
    ft_alone = run("suspect.pt2", tmp_path / "ft", SanitizeSpec(recipe="clp"))
    caps_alone = run("suspect.pt2", tmp_path / "caps")
    main = run("suspect.pt2", tmp_path / "a", dataclasses.replace(CAPS, compare=["clp"]))
    beside = run("suspect.pt2", tmp_path / "b", SanitizeSpec(recipe="clp", compare=["caps", "paper"]))
    assert main.comparison[1].attack_success == ft_alone.attack_success.after
    assert main.comparison[1].accuracy == ft_alone.accuracy.after
    assert beside.comparison[1].attack_success == caps_alone.attack_success.after
    assert beside.caps.status == "not_attempted"
    assert (tmp_path / "b").read_bytes() == (tmp_path / "ft").read_bytes()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "caps").read_bytes()


@pytest.fixture
def short(monkeypatch):
    """Searches that are too short to judge by, a verdict all the same, and triggers that always still work."""
    for module, values in {
        "inspection": {"MASK_STEPS": 150, "HALF_OPEN_STEPS": 40, "PERTURBATION_STEPS": 5, "WITNESS_MASK_STEPS": 20},
        "witness": {"STEPS": 60},
        "recipes.trials": {"TRIAL_STEPS": 4},
        "recipes.auto": {"ESTIMATE_STEPS": 4, "REPAIRED_AT": -1.0},
    }.items():
        for name, value in values.items():
            monkeypatch.setattr(sys.modules[f"worker.sanitizer.{module}"], name, value)
    verdict = Verdict(verdict="backdoored", reason="So it is.", target_classes=[0], score=2.0)
    monkeypatch.setattr(sys.modules["worker.sanitizer.verdict"], "judge", lambda *_: verdict)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("wanted", [True, False])
def test_auto_bounds_activations_only_where_nothing_trains_and_nobody_objects(run, tmp_path, wanted):
    report = run("suspect.pt2", tmp_path / "out.pt2", SanitizeSpec(repair=False, caps=wanted))
    assert report.repair.status == "not_attempted"
    assert report.caps.status == ("added" if wanted else "not_attempted")
    assert bool(report.caps.layers) is wanted
    if wanted:
        assert report.attack_success.after.value < 0.25
        assert report.synthetic_attack_success is not None


@pytest.mark.usefixtures("short")
def test_auto_says_that_weights_alone_carry_no_bounds(planted, modules, folder, tmp_path):
    torch.save(modules[True].state_dict(), tmp_path / "m.pt")
    report = sanitize(
        checkpoint_path=tmp_path / "m.pt",
        clean_path=folder / "clean.npz",
        output_path=tmp_path / "out.pt",
        architecture=planted.architecture,
        input_spec=planted.input_spec,
        spec=SanitizeSpec(repair=False),
    )
    assert report.caps.status == "not_possible"
    assert ".pt2" in report.caps.reason


def test_a_program_for_one_batch_size_is_bounded_as_one_for_any(run, planted, modules, tmp_path):
    path = tmp_path / "three.pt2"
    torch.export.save(torch.export.export(nn.Sequential(modules[True]), (torch.zeros(3, 1, 12, 12),)), path)
    report = run(path, tmp_path / "out.pt2")
    assert report.caps.deviations == run("suspect.pt2", tmp_path / "any.pt2").caps.deviations
    program = torch.export.load(tmp_path / "out.pt2").module()
    pixels = planted.stamp(planted.images(3, seed=5).pixels_NCHW)
    torch.testing.assert_close(
        program((pixels - 0.5) / 0.25), torch.export.load(tmp_path / "any.pt2").module()((pixels - 0.5) / 0.25)
    )
