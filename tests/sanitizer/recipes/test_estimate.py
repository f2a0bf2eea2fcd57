"""What triggers still do, against counts by hand."""

import dataclasses

import pytest
import torch

from worker.sanitizer.evaluate import predict, wilson
from worker.sanitizer.exhibits import Suspected
from worker.sanitizer.recipes import RECIPES, carry_out, inversion
from worker.sanitizer.recipes.estimate import estimated, interval, worst
from worker.sanitizer.recipes.workbench import NOT_JUDGED, Outcome
from worker.sanitizer.report import Choice, Verdict
from worker.sanitizer.spec import FixedFraction, SanitizeSpec
from worker.sanitizer.trigger import ANYWHERE, Triggers


def patches(planted, targets):
    """A patch like the planted one for each target, after the first one an empty one."""
    amount = torch.zeros(len(targets), 1, *planted.images(1, seed=1).pixels_NCHW.shape[2:])
    amount[0, :, -3:, -3:] = 1.0
    pattern = torch.ones(len(targets), *planted.images(1, seed=1).pixels_NCHW.shape[1:])
    return Triggers("mask", torch.tensor(targets), amount, pattern)


def test_the_worst_trigger_counts_over_the_images_that_are_not_of_its_class(suspect, planted):
    bench = suspect().bench
    triggers = patches(planted, [planted.target, 1])
    select = bench.select
    answers = predict(bench.network, triggers.stamp(select.pixels_NCHW, 0))
    others = select.labels != planted.target
    hits, count = int((answers[others] == planted.target).sum()), int(others.sum())
    found = [Suspected(triggers=triggers, which=row, success=share) for row, share in enumerate((0.75, 0.1))]
    said = estimated(bench.network, found, [triggers, triggers.take([1])], select)
    now, was = wilson(hits, count), wilson(round(0.75 * count), count)
    assert (said.after, said.after_low, said.after_high) == (now.value, now.low, now.high)
    assert (said.before, said.before_low, said.before_high) == (was.value, was.low, was.high)
    assert said.num_triggers == 3


@pytest.mark.parametrize(("target", "count"), [(0, 2), (3, 5), (ANYWHERE, 5)])
def test_images_of_the_target_class_are_left_out(target, count):
    labels = torch.tensor([0, 0, 0, 1, 2])
    assert interval(1.0, target, labels) == wilson(count, count)


def test_a_set_of_the_target_class_alone_says_nothing_rather_than_failing():
    said = interval(0.0, 1, torch.tensor([1, 1]))
    assert (said.value, said.low, said.num_images) == (0.0, 0.0, 1)
    assert said.high > 0.7


def test_a_trigger_on_some_images_takes_them_from_all_classes(suspect, planted):
    images = suspect().bench.repair
    order = images.labels.argsort(stable=True)
    sorted_by_class = dataclasses.replace(images, pixels_NCHW=images.pixels_NCHW[order], labels_N=images.labels[order])
    one = Suspected(triggers=patches(planted, [planted.target]), which=0)
    some = one.stamped(sorted_by_class)
    assert len(some) == min(256, len(images))
    assert set(some.labels.tolist()) == set(images.labels.tolist())
    assert bool((some.pixels_NCHW[:, :, -3:, -3:] == 1).all())


def test_a_search_that_diverged_counts_as_a_success(suspect, planted):
    bench = suspect().bench
    triggers = patches(planted, [1, 2])
    triggers.pattern_TCHW[1, 0, 0, 0] = torch.nan
    assert worst(bench.network, [triggers.take([0])], bench.select).value < 0.5
    assert worst(bench.network, [triggers], bench.select).value == 1.0


def test_recipes_that_search_and_do_not_judge_have_an_estimate(suspect, monkeypatch):
    monkeypatch.setattr(inversion, "SYNTHESIS_STEPS", 30)
    for inputs, has_one in (("synthetic", True), ("clean", False)):
        spec = SanitizeSpec(recipe="prune", inputs=inputs, selection=FixedFraction(fraction=0.3))
        made = suspect(spec=spec)
        outcome = carry_out("prune", made.bench)
        assert (outcome.estimate is not None) == has_one
        if has_one:
            (one,) = outcome.triggers
            select = made.bench.select
            assert outcome.estimate.before == one.success
            assert outcome.estimate.after == worst(made.bench.network, [one.trigger], select).value


def test_a_network_that_was_judged_and_left_alone_has_none(suspect, monkeypatch):
    bench = suspect().bench
    one = Suspected(triggers=synthesised(bench), which=0, success=0.9)
    for verdict, has_one in ((Verdict(verdict="clean", reason="."), False), (NOT_JUDGED, True)):
        outcome = Outcome(choice=Choice(num_pruned=0, num_in_scope=0, reason="."), triggers=[one], verdict=verdict)
        monkeypatch.setitem(RECIPES, "ft", lambda _, outcome=outcome: outcome)
        assert (carry_out("ft", bench).estimate is not None) == has_one


def synthesised(bench):
    shape = bench.select.pixels_NCHW.shape[1:]
    return Triggers("mask", torch.tensor([0]), torch.zeros(1, 1, *shape[1:]), torch.zeros(1, *shape))
