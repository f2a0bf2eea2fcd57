"""A verdict's rate of false alarms: the formula, its promise, and the bank that comes with the library."""

import math

import numpy as np
import pytest

from benchmarks.battery.calibration import is_calibration
from benchmarks.battery.catalogue import all_models
from worker.sanitizer import reference_bank
from worker.sanitizer.reference_bank import false_positive_rate, reference_scores


@pytest.mark.parametrize(("score", "rate"), [(0.1, 1.0), (0.5, 0.8), (0.6, 0.6), (0.9, 0.2), (0.8, 0.4)])
def test_the_rate_counts_those_that_score_so_high_and_one_more(score, rate):
    assert false_positive_rate(score, [0.5, 0.8, 0.7, 0.3]) == pytest.approx(rate)


@pytest.mark.parametrize("wanted", [0.1, 0.25, 0.5])
def test_clean_networks_are_alarmed_about_no_more_often_than_the_rate_says(wanted):
    drawn = np.random.default_rng(0).gumbel(size=(4000, 14))
    alarms = np.mean([false_positive_rate(scores[0], scores[1:]) <= wanted for scores in drawn.tolist()])
    # Of 14 networks in random order: floor(14 a) / 14, exactly.
    expected = math.floor(14 * wanted) / 14
    assert abs(alarms - expected) <= 4 * math.sqrt(expected * (1 - expected) / len(drawn))


def test_the_librarys_bank_holds_clean_networks_set_aside_for_it_and_no_others():
    document = reference_bank.json.loads(
        reference_bank.resources.files("worker.sanitizer").joinpath(reference_bank.FILE_NAME).read_text()
    )
    allowed = {config.name for config in all_models() if config.attack is None and is_calibration(config.name)}
    assert set(document["scores"]) <= allowed
    assert reference_scores() == tuple(document["scores"].values())
    assert all(math.isfinite(score) for score in reference_scores())
    assert false_positive_rate(math.inf) == 1 / (1 + len(reference_scores()))
    assert false_positive_rate(-math.inf) == 1
