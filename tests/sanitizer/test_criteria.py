"""Scores against a formula by hand, and what standardising must not depend on."""

import numpy as np
import pytest
import torch

from worker.sanitizer.activations import NORMS, ChannelStatistics
from worker.sanitizer.criteria import (
    activation_scores,
    beyond_mean,
    lipschitz_bound,
    mean_activation,
    norm_divergence,
    norm_gain,
    peak_entropy,
    standardise,
)


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


def test_mean_activation_is_the_sum_over_images_by_their_number():
    assert mean_activation(statistics(0.0))["conv"].tolist() == [0.5, 1.0, 3.0]


def test_the_lipschitz_bound_is_the_largest_singular_value_with_the_norm_folded_in():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 3, 2, 2, generator=generator)
    gamma, variance = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0]), torch.tensor([0.25, 1.0, 4.0, 1.0, 0.5])
    largest = [np.linalg.svd(kernel.reshape(3, 4), compute_uv=False)[0] for kernel in weight.double().numpy()]
    np.testing.assert_allclose(lipschitz_bound(weight).numpy(), largest, rtol=1e-10)
    gain = np.abs(gamma.numpy()) / np.sqrt(variance.double().numpy() + 1e-3)
    folded = lipschitz_bound(weight, norm_gain(gamma, variance, 1e-3))
    np.testing.assert_allclose(folded.numpy(), largest * gain, rtol=1e-10)


def test_a_channel_bends_no_direction_further_than_its_bound():
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(4, 6, 1, 1, generator=generator, dtype=torch.float64)
    direction = torch.nn.functional.normalize(torch.randn(1000, 6, generator=generator, dtype=torch.float64))
    steepest = (direction @ weight.flatten(1).T).abs().amax(dim=0)
    assert bool((steepest <= lipschitz_bound(weight) + 1e-12).all())
    assert bool((steepest >= 0.6 * lipschitz_bound(weight)).all())


def test_the_divergence_is_that_of_two_normal_distributions():
    first, second = torch.distributions.Normal(0.3, 0.7), torch.distributions.Normal(-0.2, 1.9)
    expected = torch.distributions.kl_divergence(first, second)
    moments = [torch.tensor([value]) for value in (0.3, 0.49, -0.2, 3.61)]
    torch.testing.assert_close(norm_divergence(*moments, eps=0.0).float(), expected.view(1))


def test_equal_and_dead_channels_do_not_diverge():
    mean, variance = torch.tensor([0.4, 0.0]), torch.tensor([2.0, 0.0])
    torch.testing.assert_close(
        norm_divergence(mean, variance, mean, variance, eps=1e-5), torch.zeros(2, dtype=torch.float64)
    )


def test_the_entropy_is_that_of_numpys_histogram():
    peaks = torch.randn(200, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = []
    for column in peaks.numpy().T:
        unit = (column - column.mean()) / column.std()
        counts, _ = np.histogram(unit, bins=np.arange(-100, 101) * 0.1)
        share = counts[counts > 0] / len(column)
        expected.append(-(share * np.log(share)).sum())
    np.testing.assert_allclose(peak_entropy(peaks, 0.1).numpy(), expected, rtol=1e-10)


def test_two_modes_have_less_entropy_than_one_and_a_constant_has_none():
    generator = torch.Generator().manual_seed(3)
    one = torch.randn(400, generator=generator)
    two = torch.cat([0.1 * torch.randn(200, generator=generator), 20 + 0.1 * torch.randn(200, generator=generator)])
    entropy = peak_entropy(torch.stack([one, two, torch.full((400,), 5.0)], dim=1))
    assert entropy[1] < 0.5 * entropy[0]
    assert entropy[2] == 0


def test_beyond_the_mean_is_numpys_rule_and_saturates_in_narrow_layers():
    values = torch.randn(50, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    values[7] = 9.0
    array = values.numpy()
    assert beyond_mean(values, 3.0).tolist() == (array > array.mean() + 3 * array.std(ddof=1)).tolist()
    assert beyond_mean(values, 3.0).nonzero().flatten().tolist() == [7]
    assert not beyond_mean(torch.tensor([0.0] * 7 + [1e9]), 3.0).any()
    assert not beyond_mean(torch.tensor([1.0]), 3.0).any()
