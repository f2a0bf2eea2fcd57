"""Activation caps: the bounds against NumPy, what they must keep and what they must stop, and when they come off."""

import dataclasses

import numpy as np
import pytest
import torch

from worker.sanitizer import masks
from worker.sanitizer.capping import VALUE_NAME
from worker.sanitizer.exhibits import Suspected
from worker.sanitizer.recipes import RecipeNotApplicableError, activation_caps
from worker.sanitizer.recipes.activation_caps import (
    DEVIATIONS,
    add_caps,
    answers_to,
    cap_pruned,
    cap_repaired,
    caps,
    carriers,
    judging,
)
from worker.sanitizer.recipes.workbench import Outcome
from worker.sanitizer.report import Choice
from worker.sanitizer.spec import AccuracyBudget, SanitizeSpec
from worker.sanitizer.trigger import Triggers


@pytest.fixture
def named(suspect):
    """A suspect whose file, so it says, has names for the activations."""

    def make(**options):
        made = suspect(**options)
        network = made.bench.network
        for node in network.graph.graph.nodes:
            if node.name in {site.tap for site in network.sites}:
                node.meta[VALUE_NAME] = node.name
        return made

    return make


def planted(target, *, opacity=1.0):
    """The true trigger, or a faint one, as if it had been synthesised."""
    mask, pattern = torch.zeros(1, 1, 12, 12), torch.zeros(1, 1, 12, 12)
    mask[:, :, -4:-1, -4:-1] = opacity
    pattern[:, :, -4:-1, -4:-1] = (torch.arange(9).view(3, 3) % 2).float()
    triggers = Triggers(family="mask", targets_T=torch.tensor([target]), amount_T1HW=mask, pattern_TCHW=pattern)
    return Suspected(triggers=triggers, which=0, success=1.0)


def values(made):
    """Each site's activations on the images that are not held out, before any bound."""
    network, seen = made.bench.network, {}
    images = made.bench.repair.join(made.bench.select)
    with torch.no_grad():
        network.observe(
            images.pixels_NCHW, {site.tap: lambda v, n=site.name: seen.update({n: v.numpy()}) for site in network.sites}
        )
    return seen


def test_the_planted_backdoor_goes_and_accuracy_stays(named):
    made = named()
    before, success = made.scores()
    assert success > 0.95
    outcome = caps(made.bench)
    after, left = made.scores()
    assert outcome.caps.status == "added"
    assert outcome.choice.num_pruned == 0
    assert after >= before - 0.03
    assert left < 0.2
    assert all(0 <= done <= total for _, done, total in made.phases)


def test_every_bound_is_the_channels_mean_and_k_standard_deviations(named):
    made = named()
    seen = values(made)
    k = caps(made.bench).caps.deviations
    assert k in DEVIATIONS
    bounds = made.bench.network.bounds.by_value()
    for site in made.bench.network.sites:
        maps = seen[site.name].astype(np.float64)
        wanted = maps.mean(axis=(0, 2, 3)) + k * maps.std(axis=(0, 2, 3))
        np.testing.assert_allclose(bounds[site.tap].flatten().numpy(), wanted, rtol=1e-5)


def test_the_tightest_bound_that_keeps_the_budget_is_taken(named, monkeypatch):
    monkeypatch.setattr(activation_caps, "DEVIATIONS", ks := (8.0, 4.0, 2.0, 1.0, 0.5, 0.0))
    found = {}
    for budget in (0.0, 0.3):
        made = named(spec=SanitizeSpec(selection=AccuracyBudget(max_accuracy_drop=budget)))
        found[budget] = caps(made.bench).caps
    assert found[0.3].deviations < found[0.0].deviations
    for budget, report in found.items():
        first = report.curve[0]
        assert [point.deviations for point in report.curve] == list(ks[: len(report.curve)])
        assert all(point.admissible for point in report.curve[:-1])
        chosen = next(point for point in report.curve if point.deviations == report.deviations)
        assert chosen.admissible
        assert first.accuracy - chosen.accuracy <= budget + 0.01


def test_a_budget_that_no_bound_keeps_leaves_the_network_alone(named, monkeypatch):
    monkeypatch.setattr(activation_caps, "DEVIATIONS", (-5.0,))
    made = named()
    before = made.scores()
    report = caps(made.bench).caps
    assert (report.status, report.deviations) == ("not_added", None)
    assert made.scores() == before
    assert made.bench.network.bounds.by_value() == {}


def test_scaling_a_layer_and_undoing_it_in_the_next_moves_no_answer(named):
    """ReLU is homogeneous: the same network written otherwise gets the same bounds, but for the scale."""
    plain, scaled = named(batch_norm=False), named(batch_norm=False)
    first, second, *_ = scaled.bench.network.sites
    with torch.no_grad():
        for rows in first.owned:
            scaled.bench.network.tensors[rows.tensor].mul_(4)
        scaled.bench.network.tensors[second.weight].div_(4)
    one, other = caps(plain.bench).caps, caps(scaled.bench).caps
    assert one.deviations == other.deviations
    assert plain.scores() == scaled.scores()
    bounds, scaled_bounds = plain.bench.network.bounds.by_value(), scaled.bench.network.bounds.by_value()
    torch.testing.assert_close(scaled_bounds[first.tap], 4 * bounds[first.tap])
    torch.testing.assert_close(scaled_bounds[second.tap], bounds[second.tap])


def test_bounds_that_stop_no_suspects_trigger_are_lifted(named):
    made = named()
    before = made.scores()
    images = judging(made.bench)
    first = answers_to(made.bench.network, images)
    # No trigger at all: what it sends anywhere are mistakes, which bounds do not stop.
    report = add_caps(made.bench, images, first, [planted(1, opacity=0.0)])
    assert report.status == "not_added"
    assert "half" in report.reason
    assert made.scores() == before
    assert add_caps(made.bench, images, first, [planted(1, opacity=0.0), planted(0)]).status == "added"


def test_a_trigger_that_hardly_works_keeps_no_bounds(named, monkeypatch):
    made = named()
    # The one that works is untouched; of the other's few successes half are gone.
    shares = iter([[0.95, 0.02], [0.95, 0.01]])
    monkeypatch.setattr(activation_caps, "_successes", lambda *_: next(shares))
    images = judging(made.bench)
    report = add_caps(made.bench, images, answers_to(made.bench.network, images), [planted(0), planted(1)])
    assert report.status == "not_added"
    assert made.bench.network.bounds.by_value() == {}


def test_silenced_channels_stay_silent_under_their_bounds(named):
    made = named()
    mask = made.without(2)
    caps(made.bench)
    bound = made.bench.network.bounds.by_value()[made.bench.network.sites[0].tap].flatten()
    assert bound[2] == 0
    assert made.silent(mask)


def pruned(made, mask):
    """The outcome of a pruning, which is carried out."""
    masks.silence(made.bench.network, mask)
    return Outcome(choice=Choice(num_pruned=3, num_in_scope=9, reason="r"), mask=mask, triggers=[planted(0)])


def test_a_pruning_that_leaves_no_room_for_bounds_goes(named):
    made = named()
    before = made.tensors()
    site = made.bench.network.last_conv()
    outcome = pruned(made, {site.name: torch.arange(site.num_channels) >= site.num_channels // 2})
    kept = cap_pruned(made.bench, outcome, before)
    assert (kept.caps.status, kept.mask, kept.choice.num_pruned) == ("added", {}, 0)
    assert made.scores()[1] < 0.2
    weights = {name: tensor for name, tensor in made.tensors().items() if name in before}
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights.items())


def test_a_pruning_beside_which_bounds_leave_less_of_the_triggers_stays(named, monkeypatch):
    made = named()
    before = made.tensors()
    site = made.bench.network.sites[-1]
    mask = {site.name: torch.arange(site.num_channels) > 0}
    outcome = pruned(made, mask)
    # Alone the bounds leave more than beside the pruning.
    shares = iter([[1.0], [0.3], [0.3], [1.0], [0.1], [0.1]])
    monkeypatch.setattr(activation_caps, "_successes", lambda *_: next(shares))
    kept = cap_pruned(made.bench, outcome, before)
    assert (kept.caps.status, kept.choice.num_pruned) == ("added", 3)
    assert list(kept.mask) == [site.name]
    assert made.silent(mask)


@pytest.mark.parametrize(("keeps", "deviations"), [([True], 3.0), ([False, True], 3.5), ([False] * 4, None)])
def test_beside_a_repair_the_tightest_bound_that_is_admissible_is_taken(named, keeps, deviations):
    made = named()
    before = made.scores()
    seen, asked = values(made), iter(keeps)
    report = cap_repaired(made.bench, lambda: next(asked))
    assert (report.status, report.deviations) == ("not_added" if deviations is None else "added", deviations)
    assert [point.admissible for point in report.curve] == keeps
    bounds = made.bench.network.bounds.by_value()
    if deviations is None:
        assert bounds == {}
        assert made.scores() == before
        return
    assert made.scores()[1] < before[1]
    for site in made.bench.network.sites:
        maps = seen[site.name].astype(np.float64)
        wanted = maps.mean(axis=(0, 2, 3)) + deviations * maps.std(axis=(0, 2, 3))
        np.testing.assert_allclose(bounds[site.tap].flatten().numpy(), wanted, rtol=1e-5)


def test_behind_a_repair_bounds_may_cost_half_of_the_budget(named, monkeypatch):
    monkeypatch.setattr(activation_caps, "DEVIATIONS_REPAIRED", ks := (0.0, 0.5, 1.0, 2.0, 3.0))
    found = {}
    for budget in (0.0, 0.3):
        made = named(spec=SanitizeSpec(selection=AccuracyBudget(max_accuracy_drop=budget)))
        report = found[budget] = cap_repaired(made.bench, lambda: True)
        assert [point.deviations for point in report.curve] == list(ks[: len(report.curve)])
        assert [point.admissible for point in report.curve] == [False] * (len(report.curve) - 1) + [True]
        assert report.curve[-1].accuracy >= 0.98 - budget / 2
    assert found[0.3].deviations < found[0.0].deviations


def test_a_file_that_cannot_carry_bounds_is_refused(suspect):
    made = suspect()
    assert carriers(made.bench.network) == []
    with pytest.raises(RecipeNotApplicableError, match=r"\.pt2") as refused:
        caps(made.bench)
    assert refused.value.code == "recipe_not_applicable"


def test_the_bounds_hang_on_no_draw(named):
    once, twice = named(seed=1), named(seed=2)
    assert caps(once.bench).caps == caps(twice.bench).caps
    assert dataclasses.asdict(caps(once.bench).caps)["layers"] == [], "the report names the layers of the file"
