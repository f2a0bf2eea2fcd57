"""The sweep's grid, its choice, and intervals, by hand and by property."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.sanitizer.evaluate import accuracy_drop, divergence, recalls, wilson
from worker.sanitizer.selection import (
    SUCCESS_TIE,
    Limits,
    beyond_deviations,
    least_success_within,
    strongest_within,
)
from worker.sanitizer.sweep import SweepPoint, grid


def limits(drop, recall_drop=None, errors=None):
    return Limits(accuracy_drop=drop, recall_drop=recall_drop, errors=errors)


@given(st.integers(1, 5000), st.integers(2, 200), st.floats(0.01, 0.99))
def test_the_grid_starts_at_nothing_grows_and_ends_at_the_fraction(num_channels, num_points, max_fraction):
    counts = grid(num_channels, num_points=num_points, max_fraction=max_fraction)
    assert counts[0] == 0
    assert counts == sorted(set(counts))
    assert counts[-1] == max(1, round(max_fraction * num_channels))


@pytest.mark.parametrize(("drop", "count"), [(0.0, 1), (0.02, 9), (0.5, 30)])
def test_the_strongest_admissible_point_is_chosen(drop, count):
    points = [SweepPoint(0, 0.90), SweepPoint(1, 0.90), SweepPoint(4, 0.87), SweepPoint(9, 0.88), SweepPoint(30, 0.4)]
    assert strongest_within(points, limits(drop)).count == count


def test_a_budget_of_exactly_two_images_is_not_lost_to_rounding():
    points = [SweepPoint(0, 148 / 150), SweepPoint(3, 145 / 150)]
    assert strongest_within(points, limits(0.02)).count == 3


def test_the_admissible_point_of_least_success_is_chosen_and_of_equals_the_one_with_the_fewest_channels():
    points = [
        SweepPoint(0, 0.90, 1.0),
        SweepPoint(1, 0.90, 0.6),
        SweepPoint(4, 0.89, 0.10),
        SweepPoint(9, 0.88, 0.10 - SUCCESS_TIE / 2),
        SweepPoint(30, 0.40, 0.0),
    ]
    assert least_success_within(points, limits(0.02)).count == 4
    assert least_success_within(points, limits(0.0)).count == 1
    assert least_success_within(points, limits(0.5)).count == 30
    assert least_success_within([SweepPoint(0, 0.9), SweepPoint(5, 0.9)], limits(0.02)).count == 0


def test_a_class_that_loses_more_recall_than_it_may_makes_a_point_inadmissible():
    points = [
        SweepPoint(0, 0.90, 1.0),
        SweepPoint(1, 0.90, 0.8, -0.01),
        SweepPoint(4, 0.89, 0.3, 0.25),
        SweepPoint(9, 0.89, 0.1, 0.5),
    ]
    for choose in (strongest_within, least_success_within):
        assert choose(points, limits(0.02)).count == 9
        assert choose(points, limits(0.02, 0.25)).count == 4
        assert choose(points, limits(0.02, 0.2)).count == 1
        assert choose(points, limits(0.0, 0.25)).count == 1


def test_a_limit_that_must_be_kept_surely_leaves_room_for_chance():
    points = [
        SweepPoint(0, 0.90, 1.0),
        SweepPoint(2, 0.90, 0.5),
        SweepPoint(4, 0.86, 0.0, label_drop=0.04, label_error=0.02),
    ]
    for choose in (strongest_within, least_success_within):
        assert choose(points, limits(0.04)).count == 4
        assert choose(points, limits(0.06, errors=1.0)).count == 4
        assert choose(points, limits(0.0599, errors=1.0)).count == 2
        assert choose(points, limits(0.04, errors=0.0)).count == 4
        assert choose(points, limits(0.04, errors=1.645)).count == 2


def test_surely_holds_for_the_counts_too_and_no_number_keeps_no_limit():
    points = [SweepPoint(0, 0.90), SweepPoint(3, 0.85), SweepPoint(5, 0.90, label_drop=float("nan"))]
    assert strongest_within(points, limits(0.04, errors=1.0)).count == 0
    assert strongest_within(points, limits(0.06, errors=1.0)).count == 3


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_the_drop_and_its_error_are_those_of_the_paired_differences(pairs):
    before, after = torch.tensor(pairs).unbind(dim=1)
    drop, error = accuracy_drop(before, after)
    difference = before.double() - after.double()
    assert drop == pytest.approx(float(difference.mean()))
    assert error == pytest.approx(float(difference.std(correction=0)) / len(pairs) ** 0.5, abs=1e-9)


def test_the_divergence_is_that_of_the_distributions():
    before, after = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log(), torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log()
    by_hand = 0.5 * (0.5 * torch.tensor(2.0).log() + 0.5 * torch.tensor(2 / 3).log())
    assert divergence(before, after) == pytest.approx(float(by_hand))
    assert divergence(before, before) == 0.0


def test_deviations_are_counted_on_the_side_that_is_pruned_first():
    scores = {"a": torch.tensor([-9.0, -0.1, 0.0, 0.1, 0.2, 5.0])}
    assert beyond_deviations(scores, 3, descending=True) == 1
    assert beyond_deviations(scores, 30, descending=False) == 1


def test_wilson_by_hand():
    # Agresti & Coull (1998): 0 of 10 gives [0, 0.2775]; 5 of 10 gives [0.2366, 0.7634].
    none, half = wilson(0, 10), wilson(5, 10)
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(0.2775, abs=5e-5)
    assert (half.low, half.high) == (pytest.approx(0.2366, abs=5e-5), pytest.approx(0.7634, abs=5e-5))


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_value_and_stays_a_proportion(case):
    estimate = wilson(*case)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_recalls_by_hand():
    found = recalls(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 2, 2]), 4)
    assert found[:3].tolist() == [1.0, 1.0, 0.5]
    assert bool(found[3].isnan())
