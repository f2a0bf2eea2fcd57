"""The order of the default recipe: a second round where one is not enough, and nothing kept that breaks a budget."""

import dataclasses
import importlib

import pytest
import torch

from worker.sanitizer import verdict as verdicts
from worker.sanitizer.recipes import RECIPES
from worker.sanitizer.repair import snapshot
from worker.sanitizer.report import SyntheticAttackSuccess
from worker.sanitizer.spec import AccuracyBudget, FixedFraction, SanitizeSpec

SHORT = {
    "verdict": {"MASK_STEPS": 10, "PERTURBATION_STEPS": 5, "HALF_OPEN_STEPS": 10},
    "recipes.trials": {"TRIAL_STEPS": 4},
    "recipes.auto": {
        "FRESH_STEPS": 4,
        "UNLEARN_STEPS": 4,
        "LEAST_UNLEARN_STEPS": 8,
        "ESTIMATE_STEPS": 4,
        "REPAIRED_AT": -1.0,
    },
}


@pytest.fixture
def shortened(suspect, monkeypatch):
    """Run `auto`, shortened, on a suspect that is judged as asked for and never called repaired."""

    def run(spec, *, judged="backdoored", **changes):
        def judge(*arguments):
            return dataclasses.replace(verdicts.judge(*arguments), verdict=judged)

        monkeypatch.setattr(importlib.import_module("worker.sanitizer.recipes.auto"), "judge", judge)
        for module, values in SHORT.items():
            for name, value in values.items():
                monkeypatch.setattr(importlib.import_module(f"worker.sanitizer.{module}"), name, value)
        for name, value in changes.items():
            monkeypatch.setattr(importlib.import_module("worker.sanitizer.repair"), name, value)
        made = suspect(spec=spec)
        before = {name: tensor.clone() for name, tensor in made.bench.network.tensors.items()}
        return RECIPES["auto"](made.bench), made, before

    return run


def test_a_second_round_follows_where_the_estimate_is_too_high(shortened):
    outcome, made, _ = shortened(SanitizeSpec(selection=FixedFraction(fraction=0.1)))
    assert outcome.verdict.verdict == "backdoored"
    assert outcome.repair.rounds == 2
    names = [name for name, _, _ in made.phases]
    assert names.index("repair") < names.index("repair_again")
    assert all(done == total for _, done, total in made.phases if total > 1)
    assert made.silent(outcome.mask)


@pytest.mark.parametrize(("left", "rounds"), [(0.3, 1), (0.2, 2)])
def test_a_second_round_that_brings_little_is_taken_back_whole(shortened, monkeypatch, left, rounds):
    auto = importlib.import_module("worker.sanitizer.recipes.auto")
    first, estimates = [], iter([0.4, left])
    again = auto._unlearn_again
    monkeypatch.setattr(
        auto, "_unlearn_again", lambda bench, *more: (first.append(snapshot(bench.network)), again(bench, *more))
    )
    monkeypatch.setattr(
        auto, "_estimate", lambda *_: SyntheticAttackSuccess(before=1.0, after=next(estimates), num_triggers=1)
    )
    outcome, made, _ = shortened(SanitizeSpec(selection=FixedFraction(fraction=0.1)))
    assert outcome.repair.rounds == rounds
    assert outcome.estimate.after == (0.4 if rounds == 1 else left)
    unchanged = all(torch.equal(tensor, first[0][name]) for name, tensor in made.bench.network.tensors.items())
    assert unchanged == (rounds == 1)


@pytest.mark.parametrize(("out", "status"), [([], "repaired"), ([3], "partly_repaired")])
def test_no_network_is_called_repaired_while_a_class_stands_out(shortened, monkeypatch, out, status):
    auto = importlib.import_module("worker.sanitizer.recipes.auto")
    done = SyntheticAttackSuccess(before=1.0, after=-1.0, num_triggers=1)
    monkeypatch.setattr(auto, "_estimate", lambda *_: done)
    monkeypatch.setattr(auto, "standing_out", lambda *_, **__: out)
    outcome, _, _ = shortened(SanitizeSpec(selection=FixedFraction(fraction=0.1)))
    assert outcome.repair.status == status
    assert ("to class 3" in outcome.repair.reason) == bool(out)


def test_no_second_round_follows_where_the_verdict_is_not_sure(shortened):
    outcome, made, _ = shortened(SanitizeSpec(selection=FixedFraction(fraction=0.1)), judged="suspicious")
    assert outcome.repair.rounds == 1
    assert "repair_again" not in [name for name, _, _ in made.phases]


def test_rounds_that_break_the_accuracy_budget_are_taken_back_whole(shortened):
    outcome, made, before = shortened(SanitizeSpec(selection=AccuracyBudget(max_accuracy_drop=0.02)), RATE=3.0)
    assert (outcome.repair.rounds, outcome.repair.share_kept) == (1, 0.0)
    assert made.silent(outcome.mask)
    silenced = {name for site in made.bench.network.sites if site.name in outcome.mask for name in site.tensors}
    for name, tensor in made.bench.network.tensors.items():
        assert torch.equal(tensor, before[name]) or name in silenced
