"""Pruning alone: a planted trigger is cut off within its budget, and a suspect that withstands costs nothing."""

import dataclasses

import pytest
import torch

from worker.sanitizer.exhibits import Suspected
from worker.sanitizer.masks import num_pruned
from worker.sanitizer.recipes.cut_off import MAX_CHANNELS, _far_enough, cut_off
from worker.sanitizer.selection import Limits
from worker.sanitizer.spec import AccuracyBudget, SanitizeSpec
from worker.sanitizer.sweep import SweepPoint
from worker.sanitizer.trigger import Triggers
from worker.sanitizer.variety import patchworks

LOOSE = Limits(accuracy_drop=0.1, errors=1.0)


def true_trigger(target=0):
    """The planted patch as a mask."""
    amount, pattern = torch.zeros(1, 1, 12, 12), torch.zeros(1, 1, 12, 12)
    amount[..., -4:-1, -4:-1] = 1.0
    pattern[..., -4:-1, -4:-1] = (torch.arange(9).view(3, 3) % 2).float()
    return Suspected(triggers=Triggers("mask", torch.tensor([target]), amount, pattern), which=0, success=1.0)


def whole_image(made, target):
    """A whole image of a class: as natural as a feature can be."""
    image = made.clean.take((made.clean.labels == target).nonzero().flatten()[:1]).pixels_NCHW
    triggers = Triggers("mask", torch.tensor([target]), torch.full((1, 1, 12, 12), 0.95), image)
    return Suspected(triggers=triggers, which=0, success=1.0)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_a_planted_trigger_is_cut_off_and_the_budget_is_kept(suspect, batch_norm):
    made = suspect(batch_norm=batch_norm)
    accuracy_before, success_before = made.scores()
    outcome = cut_off(made.bench, [true_trigger()], LOOSE)
    accuracy_after, success_after = made.scores()
    assert success_before > 0.9
    assert success_after < 0.5 * success_before
    assert accuracy_before - accuracy_after < 0.1
    assert 0 < outcome.choice.num_pruned == num_pruned(outcome.mask) <= MAX_CHANNELS
    assert made.silent(outcome.mask)
    assert [point.num_pruned for point in outcome.curve] == list(range(outcome.choice.num_pruned + 1))
    assert outcome.curve[-1].admissible
    assert all(done == total for _, done, total in made.phases)


def test_a_suspect_that_withstands_costs_nothing(suspect):
    made = suspect()
    before = made.tensors()
    outcome = cut_off(made.bench, [whole_image(made, 2)], Limits(accuracy_drop=0.01, errors=1.0))
    assert outcome.choice.num_pruned == 0
    assert "Nothing was pruned" in outcome.choice.reason
    assert len(outcome.curve) == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.tensors().items())


def test_of_two_suspects_the_one_that_withstands_changes_nothing_for_the_other(suspect):
    alone, both = suspect(), suspect()
    first = cut_off(alone.bench, [true_trigger()], LOOSE)
    second = cut_off(both.bench, [true_trigger(), whole_image(both, 2)], LOOSE)
    assert first.choice.num_pruned > 0
    assert second.choice.num_pruned == first.choice.num_pruned
    assert all(torch.equal(keep, second.mask[name]) for name, keep in first.mask.items())


def test_no_more_channels_go_than_the_specification_allows(suspect):
    made = suspect(spec=SanitizeSpec(selection=AccuracyBudget(max_fraction=0.01)))
    outcome = cut_off(made.bench, [true_trigger()], dataclasses.replace(LOOSE, accuracy_drop=0.9))
    assert outcome.choice.num_pruned <= max(1, round(0.01 * outcome.choice.num_in_scope))


def test_the_half_is_asked_of_every_point_before_the_fewest_channels_are_taken():
    points = [SweepPoint(0, 0.9, 1.0), SweepPoint(1, 0.9, 0.52), SweepPoint(2, 0.9, 0.48)]
    assert _far_enough(points, 0, LOOSE) == 2
    assert _far_enough(points[:2], 0, LOOSE) == 0
    later = [SweepPoint(0, 0.9, 0.9), SweepPoint(3, 0.9, 0.9), SweepPoint(4, 0.9, 0.1), SweepPoint(5, 0.7, 0.0)]
    assert _far_enough(later, 3, LOOSE) == 4
    assert _far_enough(later[:2], 3, LOOSE) == 3


def test_layers_that_the_criterion_does_not_apply_to_are_left_alone(suspect):
    made = suspect(spec=SanitizeSpec(criterion="bn_divergence"))
    outcome = cut_off(made.bench, [true_trigger()], LOOSE)
    assert set(outcome.mask) <= set(outcome.scores)
    assert outcome.choice.num_in_scope == sum(len(score) for score in outcome.scores.values())


def test_clean_images_are_varied_as_the_workbench_says_with_their_own_labels(suspect):
    made, given = suspect(), []

    def vary(pixels, labels, generator):
        given.append((pixels, labels))
        return patchworks(pixels, labels, generator)

    cut_off(dataclasses.replace(made.bench, vary=vary), [true_trigger()], LOOSE)
    (pixels, labels), images = *given, made.bench.repair
    is_same = (pixels.unsqueeze(1) == images.pixels_NCHW).flatten(2).all(dim=2)
    assert torch.equal(images.labels[is_same.int().argmax(dim=1)], labels)
    assert is_same.any(dim=1).all()
