"""The order of the default recipe: a second round where one is not enough, and nothing kept that breaks a budget."""

import dataclasses
import importlib

import pytest
import torch

from tests.sanitizer.conftest import answered
from worker.sanitizer import variety
from worker.sanitizer import verdict as verdicts
from worker.sanitizer.errors import InvalidSpecError
from worker.sanitizer.recipes import RECIPES, judging
from worker.sanitizer.recipes import rounds as rounds_of_repair
from worker.sanitizer.recipes.walk_back import WALK_BACK
from worker.sanitizer.repair import snapshot
from worker.sanitizer.report import SyntheticAttackSuccess
from worker.sanitizer.spec import AccuracyBudget, FixedFraction, SanitizeSpec
from worker.sanitizer.trigger import ANYWHERE
from worker.sanitizer.variety import Recognised

SHORT = {
    "inspection": {"MASK_STEPS": 10, "PERTURBATION_STEPS": 5, "HALF_OPEN_STEPS": 10, "WITNESS_MASK_STEPS": 5},
    "witness": {"STEPS": 8},
    "recipes.trials": {"TRIAL_STEPS": 4},
    "recipes.rounds": {"FRESH_STEPS": 4, "UNLEARN_STEPS": 4, "LEAST_UNLEARN_STEPS": 8},
    "recipes.auto": {"ESTIMATE_STEPS": 4, "PERTURBATION_STEPS": 5, "REPAIRED_AT": -1.0},
}


@pytest.fixture
def shortened(suspect, monkeypatch):
    """Run `auto`, shortened, on a suspect that is judged as asked for and never called repaired."""

    def run(spec, *, judged="backdoored", by_loudness=False, **changes):
        whom, said = judging.suspect, verdicts.judge
        monkeypatch.setattr(
            judging, "suspect", lambda *given: dataclasses.replace(whom(*given), by_loudness=by_loudness)
        )
        monkeypatch.setattr(verdicts, "judge", lambda *given: dataclasses.replace(said(*given), verdict=judged))
        for module, values in SHORT.items():
            for name, value in values.items():
                monkeypatch.setattr(importlib.import_module(f"worker.sanitizer.{module}"), name, value)
        for name, value in changes.items():
            monkeypatch.setattr(importlib.import_module("worker.sanitizer.repair"), name, value)
        made = suspect(spec=spec)
        before = {name: tensor.clone() for name, tensor in made.bench.network.tensors.items()}
        return RECIPES[spec.recipe](made.bench), made, before

    return run


def test_a_second_round_follows_where_the_estimate_is_too_high(shortened, monkeypatch):
    estimates = iter([0.4, 0.1])
    monkeypatch.setattr(
        importlib.import_module("worker.sanitizer.recipes.auto"),
        "_estimate",
        lambda *_: SyntheticAttackSuccess(before=1.0, after=next(estimates), num_triggers=1),
    )
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
    again = auto.unlearn_again
    monkeypatch.setattr(
        auto, "unlearn_again", lambda bench, *more: (first.append(snapshot(bench.network)), again(bench, *more))
    )
    monkeypatch.setattr(
        auto, "_estimate", lambda *_: SyntheticAttackSuccess(before=1.0, after=next(estimates), num_triggers=1)
    )
    outcome, made, _ = shortened(SanitizeSpec(selection=FixedFraction(fraction=0.1)))
    assert outcome.repair.rounds == rounds
    assert outcome.estimate.after == (0.4 if rounds == 1 else left)
    unchanged = all(torch.equal(tensor, first[0][name]) for name, tensor in made.bench.network.tensors.items())
    assert unchanged == (rounds == 1)


@pytest.mark.parametrize(
    ("judged", "out", "estimate", "rounds", "left"),
    [
        ("backdoored", [[]], -1.0, 1, False),
        ("backdoored", [[3], []], -1.0, 2, False),
        ("suspicious", [[3], []], -1.0, 2, False),
        ("suspicious", [[3], [3]], -1.0, 1, True),  # no better, so taken back
        ("backdoored", [[3], []], 0.7, 1, True),  # better there, and the suspects' triggers work again
    ],
)
def test_a_class_that_stands_out_gets_a_round_aimed_at_it_and_withholds_repaired(
    shortened, monkeypatch, judged, out, estimate, rounds, left
):
    auto = importlib.import_module("worker.sanitizer.recipes.auto")
    found, estimates, rest, taught = iter(out), iter([-1.0, estimate]), [], []
    aimed, unlearn = auto.unlearn_aimed, rounds_of_repair.unlearn
    monkeypatch.setattr(
        auto, "unlearn_aimed", lambda bench, *more: (rest.append(snapshot(bench.network)), aimed(bench, *more))
    )
    monkeypatch.setattr(
        rounds_of_repair,
        "unlearn",
        lambda *more, **named: (taught.append(named["residual_targets"]), unlearn(*more, **named)),
    )
    monkeypatch.setattr(
        auto, "_estimate", lambda *_: SyntheticAttackSuccess(before=1.0, after=next(estimates), num_triggers=1)
    )
    monkeypatch.setattr(auto, "standing_out", lambda *_, **__: next(found))
    outcome, made, _ = shortened(SanitizeSpec(selection=FixedFraction(fraction=0.1)), judged=judged)
    doubted = judged == "suspicious" and not left
    assert (outcome.repair.rounds, outcome.repair.status == "repaired") == (rounds, not left and not doubted)
    assert outcome.estimate.after == -1.0
    assert ("to class 3" in outcome.repair.reason) == left
    assert ("sure of no class" in outcome.repair.reason) == doubted
    # Triggers that depend on the image lead anywhere and to the suspects, or where a round is aimed.
    assert taught == [[ANYWHERE, *outcome.repair.classes], *[[3]] * (len(out) - 1)]
    assert made.silent(outcome.mask)
    tensors = made.bench.network.tensors
    if rest:
        unchanged = all(torch.equal(tensor, rest[0][name]) for name, tensor in tensors.items())
        assert unchanged == (rounds == 1)


@pytest.mark.parametrize("of_small_masks", [True, False])
def test_where_no_small_mask_is_sure_the_course_is_slower_and_longer(shortened, monkeypatch, of_small_masks):
    unlearn, whom, taught = rounds_of_repair.unlearn, judging.suspect, []
    monkeypatch.setattr(
        judging, "suspect", lambda *given: dataclasses.replace(whom(*given), of_small_masks=of_small_masks)
    )
    monkeypatch.setattr(
        rounds_of_repair,
        "unlearn",
        lambda *given, **named: (taught.append((given[4], named["steps"])), unlearn(*given, **named)),
    )
    outcome, _, _ = shortened(SanitizeSpec(selection=FixedFraction(fraction=0.1)), judged="suspicious")
    course, steps = taught[0]
    assert (course.rate_share, course.mirrored) == ((1.0, False) if of_small_masks else (0.5, True))
    assert steps == max(8, 4 * len(outcome.repair.classes)) * (1.0 if of_small_masks else 1.5)


def test_no_second_round_follows_where_the_verdict_is_not_sure(shortened):
    outcome, made, _ = shortened(SanitizeSpec(selection=FixedFraction(fraction=0.1)), judged="suspicious")
    assert outcome.repair.rounds == 1
    assert "repair_again" not in [name for name, _, _ in made.phases]


@pytest.mark.parametrize("by_loudness", [True, False])
def test_a_class_that_nature_explains_withholds_repaired(shortened, monkeypatch, by_loudness):
    auto = importlib.import_module("worker.sanitizer.recipes.auto")
    monkeypatch.setattr(auto, "standing_out", lambda *_, **__: [])
    found = SyntheticAttackSuccess(before=1.0, after=-1.0, num_triggers=1)
    monkeypatch.setattr(auto, "_estimate", lambda *_: found)
    outcome, _, _ = shortened(SanitizeSpec(selection=FixedFraction(fraction=0.1)), by_loudness=by_loudness)
    assert outcome.repair.status == ("partly_repaired" if by_loudness else "repaired")
    assert ("nature explains" in outcome.repair.reason) == by_loudness


@pytest.mark.parametrize(
    ("wanted", "judged", "capped"),
    [(True, "suspicious", True), (True, "backdoored", True), (False, "suspicious", False)],
)
def test_behind_a_repair_activations_are_bounded_unless_somebody_objects(
    shortened, monkeypatch, wanted, judged, capped
):
    auto = importlib.import_module("worker.sanitizer.recipes.auto")
    monkeypatch.setattr(auto, "standing_out", lambda *_, **__: [])
    found = SyntheticAttackSuccess(before=1.0, after=-1.0, num_triggers=1)
    monkeypatch.setattr(auto, "_estimate", lambda *_: found)
    monkeypatch.setattr(auto, "carriers", lambda network: network.sites)
    caps = importlib.import_module("worker.sanitizer.recipes.activation_caps")
    monkeypatch.setattr(caps, "carriers", lambda network: network.sites)
    spec = SanitizeSpec(selection=AccuracyBudget(max_accuracy_drop=0.5), caps=wanted)
    outcome, made, _ = shortened(spec, judged=judged)
    assert outcome.caps.status == ("added" if capped else "not_attempted")
    assert bool(made.bench.network.bounds.tensors()) == capped


@pytest.mark.parametrize("knows_patchworks", [True, False])
@pytest.mark.parametrize("attempts", [1, 2, 3])
def test_what_breaks_the_budget_all_the_way_back_is_taught_again_with_a_heavier_anchor(
    shortened, monkeypatch, attempts, knows_patchworks
):
    """The budget refuses every share of the first attempt, or of both."""
    auto, walked = importlib.import_module("worker.sanitizer.recipes.auto"), rounds_of_repair.walk_back.__module__
    monkeypatch.setattr(auto, "standing_out", lambda *_, **__: [])
    if not knows_patchworks:
        whole = Recognised(network=None, anchor={})
        monkeypatch.setattr(judging, "choose", lambda *_, **__: (whole, "Whole images."))
        monkeypatch.setattr(Recognised, "__call__", lambda _, pixels, *__, **___: pixels)
    taught, later, unlearn, again = [], [], rounds_of_repair.unlearn, auto.unlearn_again

    def spied(network, *given, **more):
        taught.append((snapshot(network), given[3], more))
        unlearn(network, *given, **more)

    refused = iter([False] * len(WALK_BACK) * (attempts - 1))
    monkeypatch.setattr(rounds_of_repair, "unlearn", spied)
    monkeypatch.setattr(importlib.import_module(walked), "within_budget", lambda *_: next(refused, True))
    monkeypatch.setattr(auto, "unlearn_again", lambda *given: (later.append(given[4]), again(*given)))
    outcome, made, _ = shortened(SanitizeSpec(selection=AccuracyBudget(max_accuracy_drop=0.5)))
    weight = taught[0][1].anchor_weight
    lightest = min(rounds_of_repair.SMALL_MASKS.anchor_weight, rounds_of_repair.LARGE_MASKS.anchor_weight)
    assert (weight >= lightest * rounds_of_repair.WHOLE_IMAGES_ANCHOR) != knows_patchworks
    weights = [weight] if attempts == 1 else [weight, weight * rounds_of_repair.SECOND_ANCHOR]
    assert [course.anchor_weight for _, course, _ in taught[: len(weights)]] == weights
    # Each attempt starts from the pruned network.
    start = taught[0][0]
    assert all(
        torch.equal(tensor, start[name]) for seen, _, _ in taught[: len(weights)] for name, tensor in seen.items()
    )
    assert made.silent(outcome.mask)
    assert outcome.repair.share_kept == (0.0 if attempts == 3 else 1.0)
    assert later[0].anchor_weight == (weights[-1] if attempts < 3 else weight)
    assert ("a second one held 4 times as hard" in outcome.repair.reason) == (attempts == 2)
    assert ("Two trainings broke" in outcome.repair.reason) == (attempts == 3)
    assert all(isinstance(more["vary"], Recognised) != knows_patchworks for _, _, more in taught)
    assert ("Whole images." in outcome.verdict.reason) != knows_patchworks


def test_a_training_that_diverged_is_not_tried_again(shortened, monkeypatch):
    auto = importlib.import_module("worker.sanitizer.recipes.auto")
    monkeypatch.setattr(auto, "standing_out", lambda *_, **__: [])
    calls = []

    def diverge(network, *_, **__):
        calls.append(network)
        next(iter(network.parameters().values())).data.view(-1)[0] = torch.nan

    monkeypatch.setattr(rounds_of_repair, "unlearn", diverge)
    outcome, made, before = shortened(SanitizeSpec(selection=FixedFraction(fraction=0.1)), judged="suspicious")
    assert (len(calls), outcome.repair.share_kept) == (1, 0.0)
    assert made.silent(outcome.mask)
    silenced = {name for site in made.bench.network.sites if site.name in outcome.mask for name in site.tensors}
    for name, tensor in made.bench.network.tensors.items():
        assert torch.equal(tensor, before[name]) or name in silenced


def test_a_network_that_knows_patchworks_is_treated_as_if_nobody_had_asked(shortened, monkeypatch):
    choose = []

    def spied(*given, **more):
        choose.append(variety.choose(*given, **more))
        return choose[-1]

    spec = SanitizeSpec(selection=FixedFraction(fraction=0.1))
    monkeypatch.setattr(judging, "choose", spied)
    _, asked, _ = shortened(spec)
    assert choose == [(variety.patchworks, "")]
    monkeypatch.setattr(judging, "choose", lambda *_, **__: (variety.patchworks, ""))
    _, unasked, _ = shortened(spec)
    assert all(torch.equal(tensor, unasked.tensors()[name]) for name, tensor in asked.tensors().items())
    assert torch.equal(asked.bench.generator.get_state(), unasked.bench.generator.get_state())


@pytest.mark.parametrize("after", [-1.0, 0.3])
def test_the_status_is_that_of_the_network_with_its_bounds(shortened, monkeypatch, after):
    auto = importlib.import_module("worker.sanitizer.recipes.auto")
    monkeypatch.setattr(auto, "standing_out", lambda *_, **__: [])
    monkeypatch.setattr(auto, "carriers", lambda network: network.sites)
    caps = importlib.import_module("worker.sanitizer.recipes.activation_caps")
    monkeypatch.setattr(caps, "carriers", lambda network: network.sites)

    def estimate(bench, *_):
        share = after if bench.network.bounds.tensors() else 0.2 - after
        return SyntheticAttackSuccess(before=1.0, after=share, num_triggers=1)

    monkeypatch.setattr(auto, "_estimate", estimate)
    outcome, _, _ = shortened(SanitizeSpec(selection=AccuracyBudget(max_accuracy_drop=0.5)))
    assert outcome.estimate.after == after
    assert outcome.repair.status == ("repaired" if after < 0 else "partly_repaired")


def test_rounds_that_break_the_accuracy_budget_are_taken_back_whole(shortened):
    outcome, made, before = shortened(SanitizeSpec(selection=AccuracyBudget(max_accuracy_drop=0.02)), RATE=3.0)
    assert (outcome.repair.rounds, outcome.repair.share_kept) == (1, 0.0)
    assert made.silent(outcome.mask)
    silenced = {name for site in made.bench.network.sites if site.name in outcome.mask for name in site.tensors}
    for name, tensor in made.bench.network.tensors.items():
        assert torch.equal(tensor, before[name]) or name in silenced


def test_pruning_alone_surely_keeps_the_budget_on_every_image_that_may_choose(shortened):
    budget = 0.2
    spec = SanitizeSpec(repair=False, selection=AccuracyBudget(max_accuracy_drop=budget, max_fraction=0.9))
    outcome, made, before = shortened(spec)
    images, network = made.bench.repair.join(made.bench.select), made.bench.network
    right_after_N, label_after_N = answered(network, images)
    network.load(before)
    right_before_N, label_before_N = answered(network, images)
    fall_N = label_before_N - label_after_N
    assert float((right_before_N - right_after_N).mean()) <= budget
    assert float(fall_N.mean() + 1.645 * fall_N.std(correction=0) / len(images) ** 0.5) <= budget
    chosen = next(point for point in outcome.curve if point.num_pruned == outcome.choice.num_pruned)
    assert chosen.accuracy == pytest.approx(float(right_after_N.mean()))
    assert f"surely loses at most 20.0% of accuracy on {len(images)} images" in outcome.choice.reason
    assert outcome.repair.status == "not_attempted"


def test_a_verdict_alone_changes_nothing_and_is_the_one_that_a_repair_would_follow(shortened):
    outcome, made, before = shortened(SanitizeSpec(recipe="judge"), judged="suspicious")
    whole, _, _ = shortened(SanitizeSpec(), judged="suspicious")
    assert outcome.verdict == whole.verdict
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.bench.network.tensors.items())
    assert (outcome.choice.num_pruned, outcome.mask, outcome.curve) == (0, {}, [])
    assert outcome.repair.status == "not_attempted"
    assert outcome.scores.keys() == whole.scores.keys()
    assert all(torch.equal(score, whole.scores[name]) for name, score in outcome.scores.items())
    assert [one.success for one in outcome.triggers] == [one.success for one in whole.triggers]


def test_a_repair_alone_silences_no_channel(shortened, monkeypatch):
    auto = importlib.import_module("worker.sanitizer.recipes.auto")
    monkeypatch.setattr(auto, "standing_out", lambda *_, **__: [])
    spec = SanitizeSpec(prune=False, selection=AccuracyBudget(max_accuracy_drop=0.5))
    outcome, made, before = shortened(spec, judged="suspicious")
    assert (outcome.choice.num_pruned, outcome.mask, outcome.curve) == (0, {}, [])
    assert "no pruning" in outcome.choice.reason
    assert (outcome.repair.rounds, outcome.repair.share_kept) == (1, 1.0)
    assert outcome.repair.accuracy_pruned == outcome.repair.accuracy_before
    assert any(not torch.equal(tensor, before[name]) for name, tensor in made.bench.network.tensors.items())


@pytest.mark.parametrize(("selection", "pruned"), [(AccuracyBudget(), False), (FixedFraction(fraction=0.1), True)])
def test_a_network_that_is_judged_clean_is_left_alone_but_for_a_fixed_pruning(shortened, selection, pruned):
    outcome, made, before = shortened(SanitizeSpec(selection=selection), judged="clean")
    unchanged = all(torch.equal(tensor, before[name]) for name, tensor in made.bench.network.tensors.items())
    assert unchanged != pruned
    assert (outcome.choice.num_pruned > 0) == pruned == bool(outcome.mask)
    assert outcome.repair.status == "not_attempted"
    assert "judged clean" in outcome.repair.reason


def test_what_cannot_be_judged_is_repaired_and_never_called_repaired(shortened, monkeypatch):
    auto = importlib.import_module("worker.sanitizer.recipes.auto")
    monkeypatch.setattr(auto, "standing_out", lambda *_, **__: [])
    found = SyntheticAttackSuccess(before=1.0, after=-1.0, num_triggers=1)
    monkeypatch.setattr(auto, "_estimate", lambda *_: found)
    outcome, made, before = shortened(SanitizeSpec(selection=FixedFraction(fraction=0.1)), judged="inconclusive")
    assert (outcome.repair.rounds, outcome.repair.status) == (1, "partly_repaired")
    assert any(not torch.equal(tensor, before[name]) for name, tensor in made.bench.network.tensors.items())


@pytest.mark.parametrize("most", [1, 2, 3])
def test_no_more_rounds_follow_than_were_asked_for(shortened, monkeypatch, most):
    auto = importlib.import_module("worker.sanitizer.recipes.auto")
    estimates, out = iter([0.9, 0.1, 0.05]), iter([[3], []])
    monkeypatch.setattr(
        auto, "_estimate", lambda *_: SyntheticAttackSuccess(before=1.0, after=next(estimates), num_triggers=1)
    )
    monkeypatch.setattr(auto, "standing_out", lambda *_, **__: next(out))
    spec = SanitizeSpec(selection=FixedFraction(fraction=0.1), max_rounds=most)
    outcome, _, _ = shortened(spec)
    assert outcome.repair.rounds == most


@pytest.mark.parametrize(("most", "trained"), [(1, 1), (2, 2), (3, 3)])
def test_a_round_that_is_taken_back_counts_as_tried(shortened, monkeypatch, most, trained):
    auto = importlib.import_module("worker.sanitizer.recipes.auto")
    monkeypatch.setattr(auto, "_estimate", lambda *_: SyntheticAttackSuccess(before=1.0, after=0.9, num_triggers=1))
    monkeypatch.setattr(auto, "standing_out", lambda *_, **__: [3])
    outcome, made, _ = shortened(SanitizeSpec(selection=FixedFraction(fraction=0.1), max_rounds=most))
    assert outcome.repair.rounds == 1
    assert len([name for name, _, _ in made.phases if name in {"repair", "repair_again"}]) == trained


@pytest.mark.parametrize(
    "fields", [{"max_rounds": 0}, {"max_rounds": 4}, {"prune": 1}, {"recipe": "prune", "prune": False},
               {"prune": False, "selection": FixedFraction(fraction=0.1)}]
)  # fmt: skip
def test_steps_that_contradict_each_other_are_refused(fields):
    with pytest.raises(InvalidSpecError):
        SanitizeSpec(**fields)


def test_a_recipe_that_prunes_does_so_beside_an_auto_that_does_not():
    spec = SanitizeSpec(prune=False, compare=["prune", "ft"])
    assert (spec.of_compared("prune").prune, spec.of_compared("ft").prune) == (True, False)
