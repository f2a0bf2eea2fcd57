"""Scores against a formula by hand, and what standardising must not depend on."""

import numpy as np
import pytest
import torch

from worker.sanitizer.activations import NORMS, ChannelStatistics
from worker.sanitizer.criteria import activation_scores, standardise


def statistics(offset):
    total = {norm: torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64) + offset for norm in NORMS}
    largest = {norm: torch.tensor([5.0, 4.0, 9.0], dtype=torch.float64) + offset for norm in NORMS}
    return {"conv": ChannelStatistics(2, total, largest)}


@pytest.mark.parametrize(
    ("inputs", "aggregate", "expected"),
    [
        ("clean", "mean", [0.5, 1.0, 3.0]),
        ("clean", "max", [5.0, 4.0, 9.0]),
        ("triggered", "mean", [2.5, 3.0, 5.0]),
        ("difference", "mean", [2.0, 2.0, 2.0]),
        ("difference", "max", [4.0, 4.0, 4.0]),
    ],
)
def test_scores_by_hand(inputs, aggregate, expected):
    scores = activation_scores(statistics(0.0), statistics(4.0), criterion="linf", aggregate=aggregate, inputs=inputs)
    assert scores["conv"].tolist() == expected


def test_standardised_scores_are_those_of_numpy():
    values = torch.randn(31, dtype=torch.float64)
    array = values.numpy()
    expected = (array - np.median(array)) / (1.4826 * np.median(np.abs(array - np.median(array))))
    np.testing.assert_allclose(standardise(values).numpy(), expected, rtol=1e-12)


def test_standardising_ignores_shift_and_scale():
    values = torch.randn(40, dtype=torch.float64)
    torch.testing.assert_close(standardise(values), standardise(3 * values - 7))


def test_an_outlier_in_a_narrow_layer_is_not_capped():
    values = torch.tensor([1.0, 1.1, 0.9, 1.05, 0.95, 1.02, 0.98, 1000.0])
    assert standardise(values)[-1] > 1000


@pytest.mark.parametrize("values", [[2.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0, 8.0]])
def test_mostly_equal_channels_give_finite_scores(values):
    scores = standardise(torch.tensor(values))
    assert bool(scores.isfinite().all())
    assert scores.argmax() == (4 if len(values) == 5 else 0)
