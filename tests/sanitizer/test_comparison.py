"""Several recipes in one job: each row is what the recipe would be alone, and the checkpoint stays the main one's."""

import dataclasses
import math
import sys

import numpy as np
import pytest
from pydantic import TypeAdapter
from safetensors.torch import save_file

from worker.sanitizer.errors import InvalidSpecError
from worker.sanitizer.recipes import RECIPES, RecipeDivergedError
from worker.sanitizer.report import Report, to_json
from worker.sanitizer.sanitize import sanitize
from worker.sanitizer.spec import CHOICES, FixedFraction, SanitizeSpec, parse_spec

PRUNE = SanitizeSpec(recipe="prune", inputs="synthetic", selection=FixedFraction(fraction=0.2))


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(sys.modules["worker.sanitizer.recipes.inversion"], "SYNTHESIS_STEPS", 20)


@pytest.fixture(scope="module")
def run(planted, modules, tmp_path_factory):
    """A job on the suspect in half precision, with batch norm or without."""
    folder = tmp_path_factory.mktemp("files")
    for batch_norm, module in modules.items():
        state = {
            name: value.half() if value.is_floating_point() else value for name, value in module.state_dict().items()
        }
        save_file(state, folder / f"{batch_norm}.safetensors")
    clean, triggered = planted.images(240, seed=11), planted.images(80, seed=12)
    np.savez(folder / "clean.npz", images=clean.pixels_NCHW.numpy(), labels=clean.labels.numpy())
    stamped = planted.stamp(triggered.pixels_NCHW)
    np.savez(folder / "triggered.npz", images=stamped.numpy(), labels=triggered.labels.numpy())

    def _run(output, spec, *, batch_norm=True, triggered=True, **more):
        options = {"width": 8, "batch_norm": batch_norm}
        return sanitize(
            checkpoint_path=folder / f"{batch_norm}.safetensors",
            clean_path=folder / "clean.npz",
            triggered_path=folder / "triggered.npz" if triggered else None,
            output_path=output,
            architecture=dataclasses.replace(planted.architecture, options=options),
            input_spec=planted.input_spec,
            spec=spec,
            **more,
        )

    return _run


def test_each_row_is_the_recipe_alone_and_the_checkpoint_is_the_main_ones(run, tmp_path):
    said = []
    compared = run(
        tmp_path / "compared",
        dataclasses.replace(PRUNE, compare=["clp", "rnp"]),
        progress=lambda *step: said.append(step),
    )
    alone = {name: run(tmp_path / name, dataclasses.replace(PRUNE, recipe=name)) for name in ("prune", "clp", "rnp")}
    assert (tmp_path / "compared").read_bytes() == (tmp_path / "prune").read_bytes()
    assert [row.recipe for row in compared.comparison] == ["prune", "clp", "rnp"]
    for row in compared.comparison:
        report = alone[row.recipe]
        assert row.status == "done"
        assert row.accuracy == report.accuracy.after
        assert row.attack_success == report.attack_success.after
        assert row.robust_accuracy == report.attack_success.robust_accuracy_after
        assert (row.num_pruned, row.reason) == (report.choice.num_pruned, report.choice.reason)
        assert 0 <= row.synthetic_attack_success <= 1
        assert row.seconds > 0
    assert compared.curve == alone["prune"].curve
    assert compared.tensors == alone["prune"].tensors
    assert set(compared.seconds) - set(alone["prune"].seconds) == {"compare_rnp"}
    assert all(0 <= done <= total for _, done, total in said)
    again = TypeAdapter(Report).validate_json(to_json(compared))
    assert again.comparison == compared.comparison


def test_a_refusal_is_a_row_and_the_next_recipe_starts_from_the_suspect(run, tmp_path):
    spec = dataclasses.replace(PRUNE, inputs="clean", compare=["bnp", "clp"])
    report = run(tmp_path / "out", spec, batch_norm=False, triggered=False)
    alone = run(tmp_path / "clp", dataclasses.replace(spec, recipe="clp", compare=[]), batch_norm=False)
    _, refused, done = report.comparison
    assert (refused.status, refused.code, refused.accuracy) == ("refused", "recipe_not_applicable", None)
    assert "no batch norm" in refused.reason
    assert (done.status, done.accuracy) == ("done", alone.accuracy.after)
    assert (done.attack_success, done.robust_accuracy, done.synthetic_attack_success) == (None, None, None)


def test_a_recipe_that_diverges_is_refused_by_its_name_and_writes_nothing(run, tmp_path, monkeypatch):
    def diverge(bench):
        outcome = RECIPES["ft"](bench)
        next(iter(bench.network.parameters().values())).data.view(-1)[0] = math.nan
        return outcome

    monkeypatch.setitem(RECIPES, "ft_sam", diverge)
    with pytest.raises(RecipeDivergedError, match="`ft_sam` diverged") as refused:
        run(tmp_path / "diverged", dataclasses.replace(PRUNE, recipe="ft_sam"))
    assert refused.value.code == "recipe_diverged"
    assert not (tmp_path / "diverged").exists()
    _, row, last = run(tmp_path / "out", dataclasses.replace(PRUNE, compare=["ft_sam", "bnp"])).comparison
    assert (row.status, row.code, row.accuracy) == ("refused", "recipe_diverged", None)
    assert (last.status, last.recipe) == ("done", "bnp")


def test_without_compare_there_are_no_rows(run, tmp_path):
    assert run(tmp_path / "out", dataclasses.replace(PRUNE, recipe="clp")).comparison == []


def test_trigger_samples_guide_a_compared_recipe_only_where_it_looks_at_them(run, tmp_path):
    spec = SanitizeSpec(recipe="clp", inputs="difference", compare=["bnp"])
    assert not spec.guided_by_trigger_samples
    guided = dataclasses.replace(spec, selection=FixedFraction(fraction=0.2), compare=["prune"])
    assert guided.guided_by_trigger_samples
    with pytest.raises(InvalidSpecError, match="needs a triggered dataset"):
        run(tmp_path / "out", guided, triggered=False)
    rows = run(tmp_path / "out", guided).comparison
    alone = run(tmp_path / "prune", guided.of_compared("prune"))
    assert rows[1].attack_success == alone.attack_success.after
    assert rows[1].accuracy == alone.accuracy.after


@pytest.mark.parametrize("compare", [["auto"], ["clp", "clp"], ["nothing"], "clp", [["clp"]], ["clp"] * 13], ids=str)
def test_what_cannot_be_compared_is_refused(compare):
    with pytest.raises(InvalidSpecError, match="compare"):
        parse_spec({"compare": compare})


def test_every_other_recipe_can_be_compared_at_once():
    others = [name for name in CHOICES["recipe"] if name != "auto"]
    assert parse_spec({"compare": others}).compare == others
