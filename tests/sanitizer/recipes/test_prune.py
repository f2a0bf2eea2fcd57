"""Pruning by criterion: what is scored, how many go, where, and that nothing else changes."""

import dataclasses

import numpy as np
import pytest
import torch

from worker.sanitizer.evaluate import predict, wilson
from worker.sanitizer.network import NetworkRefusedError
from worker.sanitizer.recipes import RECIPES
from worker.sanitizer.recipes.prune import paper, prune
from worker.sanitizer.spec import AccuracyBudget, FixedFraction, RobustDeviations, SanitizeSpec

FIXED = FixedFraction(fraction=0.2)


def spec(**changes):
    return SanitizeSpec(**({"recipe": "prune", "inputs": "clean", "selection": FIXED} | changes))


def pruned(outcome):
    return {name: (~keep).nonzero().flatten().tolist() for name, keep in outcome.mask.items()}


def norms(network, pixels, site):
    """Mean over images of the largest absolute value of each channel's map."""
    seen = []
    with torch.no_grad():
        network.observe(pixels, {site.tap: lambda maps: seen.append(maps.clone())})
    return seen[0].double().abs().amax(dim=(2, 3)).mean(dim=0).numpy()


def standardised(values):
    deviation = values - np.median(values)
    return deviation / (1.4826 * np.median(np.abs(deviation)))


@pytest.mark.parametrize("fraction", [0.01, 0.13, 0.5])
def test_a_fixed_fraction_prunes_exactly_its_count(suspect, fraction):
    made = suspect(spec=spec(selection=FixedFraction(fraction=fraction)))
    total = sum(site.num_channels for site in made.bench.network.sites)
    outcome = prune(made.bench)
    assert sum(map(len, pruned(outcome).values())) == outcome.choice.num_pruned == round(fraction * total)
    assert outcome.choice.num_in_scope == total
    assert outcome.curve == []


@pytest.mark.parametrize("order", ["descending", "ascending"])
def test_the_silenced_channels_are_the_extreme_ones_and_nothing_else_changes(suspect, order):
    made = suspect(spec=spec(order=order))
    before = made.tensors()
    outcome = prune(made.bench)
    sign = 1 if order == "descending" else -1
    gone = [sign * float(outcome.scores[name][c]) for name, channels in pruned(outcome).items() for c in channels]
    for name, keep in outcome.mask.items():  # the last channel of a layer is always spared
        assert sum(sign * score > min(gone) for score in outcome.scores[name][keep].tolist()) <= 1
    assert made.silent(outcome.mask)
    after = made.tensors()
    for site in made.bench.network.sites:
        for name in site.tensors:
            assert not bool(after[name][~outcome.mask[site.name]].any())
            before[name][~outcome.mask[site.name]] = 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


def test_robust_deviations_prune_what_lies_beyond_them_and_spare_one_channel_a_layer(suspect):
    for k in (1.0, 2.5):
        made = suspect(spec=spec(selection=RobustDeviations(k=k)))
        outcome = prune(made.bench)
        beyond = {name: (score > k).nonzero().flatten().tolist() for name, score in outcome.scores.items()}
        assert pruned(outcome) == beyond
        assert outcome.choice.num_pruned == sum(map(len, beyond.values())) > 0


@pytest.mark.parametrize("inputs", ["clean", "triggered", "difference", "synthetic", "synthetic_difference"])
def test_scores_are_numpys_on_the_inputs_that_were_asked_for(suspect, inputs):
    made = suspect(spec=spec(inputs=inputs))
    guided = inputs in ("triggered", "difference")
    bench = dataclasses.replace(made.bench, guide=made.stamped()) if guided else made.bench
    reference = suspect().bench.network
    outcome = prune(bench)
    clean = bench.repair.pixels_NCHW
    trigger = made.stamped().pixels_NCHW
    if inputs.startswith("synthetic"):
        (one,) = outcome.triggers
        assert one.which == int(one.triggers.size().argmin())
        assert len(one.triggers) == 4, "every class is asked"
        trigger = one.triggers.stamp(clean, one.which)
    else:
        assert outcome.triggers == []
    for site in reference.sites:
        expected = norms(reference, clean if inputs == "clean" else trigger, site)
        if "difference" in inputs:
            expected = expected - norms(reference, clean, site)
        np.testing.assert_allclose(outcome.scores[site.name].numpy(), standardised(expected), rtol=1e-4, atol=1e-4)
    assert bool(outcome.triggered) == (inputs != "clean")


def test_a_scope_by_name_prunes_there_alone_and_the_last_convolution_has_a_name_of_its_own(suspect):
    made = suspect()
    first, last = made.bench.network.sites[0].name, made.bench.network.last_conv().name
    for scope, names in (([first], {first}), ([last, first, last], {first, last}), ("last_conv", {last})):
        outcome = prune(suspect(spec=spec(scope=scope)).bench)
        assert set(outcome.mask) == set(outcome.scores) == names


def test_an_unknown_layer_is_refused_and_the_network_left_alone(suspect):
    made = suspect(spec=spec(scope=["features.0", "no_such_layer"]))
    before = made.tensors()
    with pytest.raises(NetworkRefusedError, match="no_such_layer"):
        prune(made.bench)
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.tensors().items())


@pytest.mark.parametrize("recipe", ["auto", "prune"])
def test_an_unknown_layer_is_refused_before_any_work(suspect, recipe):
    made = suspect(spec=SanitizeSpec(recipe=recipe, scope=["no_such_layer"]))
    with pytest.raises(NetworkRefusedError, match="no_such_layer"):
        RECIPES[recipe](made.bench)
    assert made.phases == []


@pytest.mark.parametrize("drop", [0.0, 0.1])
def test_the_accuracy_budget_keeps_the_strongest_admissible_point(suspect, drop):
    made = suspect(spec=spec(selection=AccuracyBudget(max_accuracy_drop=drop)))
    outcome = prune(made.bench)
    first = outcome.curve[0]
    assert first.num_pruned == 0
    within = [point.num_pruned for point in outcome.curve if point.accuracy >= first.accuracy - drop - 1e-9]
    assert outcome.choice.num_pruned == max(within)
    assert [point.num_pruned for point in outcome.curve if point.admissible] == within


def test_each_point_of_the_curve_has_its_interval_and_the_worst_class(suspect):
    made = suspect(spec=spec(selection=AccuracyBudget(max_accuracy_drop=0.5, num_points=6)))
    select = made.bench.select
    before = predict(made.bench.network, select.pixels_NCHW)
    outcome = prune(made.bench)
    (chosen,) = [point for point in outcome.curve if point.num_pruned == outcome.choice.num_pruned]
    after = predict(made.bench.network, select.pixels_NCHW)
    lost = [
        float(((before == k) & (select.labels == k)).sum() - ((after == k) & (select.labels == k)).sum())
        / float((select.labels == k).sum())
        for k in range(4)
    ]
    assert chosen.worst_recall_drop == pytest.approx(max(lost))
    assert chosen.worst_recall_drop > 0
    assert outcome.curve[0].worst_recall_drop == 0
    for point in outcome.curve:
        interval = wilson(round(point.accuracy * 100), 100)
        assert (point.accuracy_low, point.accuracy_high) == (interval.low, interval.high)


def test_the_recall_budget_binds_where_the_accuracy_budget_does_not(suspect):
    free = prune(suspect(spec=spec(selection=AccuracyBudget(max_accuracy_drop=0.5))).bench)
    bound = AccuracyBudget(max_accuracy_drop=0.5, max_recall_drop=0.1)
    outcome = prune(suspect(spec=spec(selection=bound)).bench)
    within = [point.num_pruned for point in free.curve if point.admissible and point.worst_recall_drop <= 0.1 + 1e-9]
    assert outcome.choice.num_pruned == max(within) < free.choice.num_pruned
    assert [point.num_pruned for point in outcome.curve if point.admissible] == within
    assert "10.0% of any class's recall" in outcome.choice.reason
    assert "recall" not in free.choice.reason


def test_the_papers_rule_is_fixed_whatever_the_specification_says(suspect, planted):
    made = suspect(spec=spec(criterion="l1", inputs="clean", scope="all_convs", order="ascending"))
    outcome = paper(made.bench)
    assert set(outcome.mask) == {made.bench.network.last_conv().name}
    assert int(outcome.triggers[0].triggers.targets_T[outcome.triggers[0].which]) == planted.target
    assert outcome.curve


def test_the_papers_rule_states_what_l1_and_l2_would_have_pruned(suspect):
    outcome = paper(suspect().bench)
    assert [row.criterion for row in outcome.norms] == ["linf", "l1", "l2"]
    own = outcome.norms[0]
    assert (own.num_pruned, own.num_shared) == (outcome.choice.num_pruned, outcome.choice.num_pruned)
    point = next(point for point in outcome.curve if point.num_pruned == own.num_pruned)
    assert (own.accuracy.value, own.synthetic_attack_success.value) == (point.accuracy, point.synthetic_attack_success)
    assert (own.accuracy.low, own.accuracy.high) == (point.accuracy_low, point.accuracy_high)
    for row in outcome.norms[1:]:
        alone = prune(
            suspect(
                spec=spec(criterion=row.criterion, inputs="synthetic", scope="last_conv", selection=AccuracyBudget())
            ).bench
        )
        assert row.num_pruned == alone.choice.num_pruned
        gone, ours = (set(pruned(one)[next(iter(one.mask))]) for one in (alone, outcome))
        assert row.num_shared == len(gone & ours)
        point = next(point for point in alone.curve if point.num_pruned == row.num_pruned)
        assert row.accuracy.value == point.accuracy
        assert row.synthetic_attack_success.value == point.synthetic_attack_success


def test_of_several_criteria_each_ones_scores_are_stated(suspect):
    outcome = prune(suspect(spec=spec(criterion=["linf", "lipschitz"])).bench)
    alone = {name: prune(suspect(spec=spec(criterion=name)).bench).scores for name in ("linf", "lipschitz")}
    assert outcome.by_criterion.keys() == alone.keys()
    for name, scores in alone.items():
        for site, score in scores.items():
            torch.testing.assert_close(outcome.by_criterion[name][site], score)
    assert prune(suspect(spec=spec()).bench).by_criterion == {}
