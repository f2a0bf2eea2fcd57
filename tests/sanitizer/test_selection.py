"""The sweep's grid, its choice, and intervals, by hand and by property."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.sanitizer.evaluate import recalls, wilson
from worker.sanitizer.selection import beyond_deviations, strongest_within_budget
from worker.sanitizer.sweep import SweepPoint, grid


@given(st.integers(1, 5000), st.integers(2, 200), st.floats(0.01, 0.99))
def test_the_grid_starts_at_nothing_grows_and_ends_at_the_fraction(num_channels, num_points, max_fraction):
    counts = grid(num_channels, num_points=num_points, max_fraction=max_fraction)
    assert counts[0] == 0
    assert counts == sorted(set(counts))
    assert counts[-1] == max(1, round(max_fraction * num_channels))


@pytest.mark.parametrize(("drop", "count"), [(0.0, 1), (0.02, 9), (0.5, 30)])
def test_the_strongest_admissible_point_is_chosen(drop, count):
    points = [SweepPoint(0, 0.90), SweepPoint(1, 0.90), SweepPoint(4, 0.87), SweepPoint(9, 0.88), SweepPoint(30, 0.4)]
    assert strongest_within_budget(points, drop).count == count


def test_a_budget_of_exactly_two_images_is_not_lost_to_rounding():
    points = [SweepPoint(0, 148 / 150), SweepPoint(3, 145 / 150)]
    assert strongest_within_budget(points, 0.02).count == 3


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
