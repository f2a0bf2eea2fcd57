"""What unlearning a candidate on trial costs: by itself, whatever else is tried, and little for a backdoor."""

import dataclasses
import importlib

import pytest
import torch

from tests.sanitizer.conftest import TARGET
from worker.sanitizer import inspection
from worker.sanitizer.inspection import inspect
from worker.sanitizer.repair import snapshot

trials = importlib.import_module("worker.sanitizer.recipes.trials")


@pytest.fixture
def costs(suspect, monkeypatch):
    """The cost of each target tried on a fresh suspect, and whether the network was left as it was."""
    monkeypatch.setattr(inspection, "PERTURBATION_STEPS", 5)
    monkeypatch.setattr(inspection, "HALF_OPEN_STEPS", 20)

    def run(num_trials, *, mask_steps=20, trial_steps=4):
        monkeypatch.setattr(inspection, "MASK_STEPS", mask_steps)
        monkeypatch.setattr(trials, "NUM_TRIALS", num_trials)
        monkeypatch.setattr(trials, "TRIAL_STEPS", trial_steps)
        bench = suspect().bench
        found = inspect(bench.network, bench.repair, bench.select, bench.num_classes, generator=bench.generator)
        before = snapshot(bench.network)
        candidates = trials.try_targets(bench, found, before)
        assert all(torch.equal(tensor, before[name]) for name, tensor in bench.network.tensors.items())
        return {candidate.target: candidate.cost for candidate in candidates}

    return run


def test_what_a_trial_costs_does_not_depend_on_the_others(costs):
    few, many = costs(2), costs(4)
    assert len(few) < len(many)
    assert few == {target: many[target] for target in few}


def test_a_planted_backdoor_is_the_cheapest_to_unlearn(costs):
    found = costs(4, mask_steps=200, trial_steps=60)
    assert min(found, key=found.get) == TARGET, found


@pytest.mark.parametrize(("most", "rounds", "number"), [(1 << 30, 8, 100), (250, 2, 100), (110, 1, 100), (40, 1, 40)])
def test_what_is_asked_is_bounded_in_memory(suspect, monkeypatch, most, rounds, number):
    bench = suspect().bench
    one = bench.repair.pixels_NCHW[0].nbytes
    monkeypatch.setattr(trials, "MAX_ASKED_BYTES", most * one)
    monkeypatch.setattr(trials, "LEAST_ASKED", 8)
    given = []

    def vary(pixels, labels, _):
        given.append(labels)
        return pixels

    asked = trials._pieced(dataclasses.replace(bench, vary=vary), bench.repair)
    assert [len(labels) for labels in given] == [number] * rounds
    assert torch.equal(asked, bench.repair.pixels_NCHW[:number].repeat(rounds, 1, 1, 1))
