"""The verdict of findings made by hand."""

import dataclasses
import math

import pytest
import torch

from worker.sanitizer import inspection
from worker.sanitizer import verdict as verdicts
from worker.sanitizer.inspection import Findings
from worker.sanitizer.trigger import ANYWHERE, Triggers
from worker.sanitizer.verdict import (
    Candidate,
    Said,
    judge,
    loudness,
    relief,
    strength,
)

EVEN = [34.0, 41.0, 34.5, 38.0, 35.0, 36.0]
SMALL_AT_2 = [34.0, 41.0, 5.0, 38.0, 35.0, 36.0]
CHEAP, DEAR = 0.01, 0.10


def triggers(targets, size=36.0):
    number = len(targets)
    return Triggers(
        "mask", torch.tensor(targets), torch.full((number, 1, 2, 2), size / 4), torch.zeros(number, 1, 2, 2)
    )


def findings(sizes, reached=None, classes=None, anywhere=50.0, destination=None, natural=None, natural_reached=None):
    """By nature all classes are alike, unless it is said otherwise."""
    number = len(sizes)
    classes = classes or list(range(10, 10 + number))
    return Findings(
        classes=classes,
        triggers=triggers(classes),
        size=torch.tensor(sizes, dtype=torch.float64),
        anywhere=triggers([ANYWHERE], anywhere),
        destination=torch.tensor(destination or [1 / number] * number, dtype=torch.float64),
        perturbation_success=torch.tensor(reached or [0.2] * number, dtype=torch.float64),
        natural_size=torch.tensor(natural or [40.0] * number, dtype=torch.float64),
        natural_success=torch.tensor(natural_reached or [0.2] * number, dtype=torch.float64),
        mask_success=torch.ones(number, dtype=torch.float64),
    )


def tried(found, costs):
    """Candidates at these positions, with these costs."""
    statistics = (
        found.prominence, found.ease, found.excess_prominence, found.excess_ease, found.expected_size
    )  # fmt: skip
    return [
        Candidate(found.classes[row], found.triggers.take([row]), Said(*(float(one[row]) for one in statistics)), cost)
        for row, cost in costs.items()
    ]


def candidate(target, prominence, ease, cost):
    """With nothing natural to discount."""
    return Candidate(target, triggers([target]), Said(prominence, ease, prominence, ease), cost)


@pytest.mark.parametrize(
    ("sizes", "costs", "verdict", "classes"),
    [
        (SMALL_AT_2, {0: DEAR, 2: CHEAP, 3: DEAR}, "backdoored", [12]),
        (SMALL_AT_2, {0: DEAR, 2: DEAR, 3: DEAR}, "suspicious", [12]),
        (EVEN, {0: DEAR, 2: CHEAP, 3: DEAR}, "suspicious", [12]),
        (SMALL_AT_2, {2: DEAR, 0: DEAR, 3: CHEAP}, "suspicious", [12, 13]),
        (EVEN, {0: DEAR, 2: DEAR, 3: DEAR}, "clean", []),
        ([20.0] * 6, {0: DEAR, 1: DEAR}, "clean", []),
    ],
)
def test_two_statistics_must_agree_on_a_class(sizes, costs, verdict, classes):
    found = findings(sizes)
    given = judge(found, tried(found, costs), num_classes=6)
    assert (given.verdict, given.target_classes) == (verdict, classes)
    assert given.reason
    assert (given.score > 1) == (verdict == "backdoored")


def test_a_trigger_that_no_small_mask_holds_is_told_by_ease_and_relief():
    found = findings(EVEN, [0.2, 0.2, 0.95, 0.2, 0.2, 0.2])
    given = judge(found, tried(found, {0: DEAR, 2: CHEAP, 3: DEAR}), num_classes=6)
    assert (given.verdict, given.target_classes) == ("backdoored", [12])
    assert given.evidence[2].ease == pytest.approx(math.log(0.95 / 0.05) - math.log(0.2 / 0.8), abs=1e-3)


def test_strength_is_the_mean_of_the_statistics_and_one_alone_is_never_enough():
    made = [
        candidate(0, 1.0, 2.0, 0.1),
        candidate(1, 30.0, 0.0, 0.1),
        candidate(2, 0.0, 30.0, 0.1),
        candidate(3, -1.0, 0.5, 0.1),
        candidate(ANYWHERE, 1.0, math.nan, 0.1 * math.exp(-3)),
    ]
    most = verdicts.BACKDOORED_STRENGTH
    assert strength(made).tolist() == pytest.approx([(1 + 0 + 1) / 3, most, most, (-1 + 0 + 0.25) / 3, (1 + 3) / 3])
    assert loudness(made).tolist() == pytest.approx([1.0, 0.0, 0.0, 0.0, 0.0])


def test_what_a_witness_knows_too_does_not_count():
    sizes = [40.0, 36.0, 5.0, 44.0, 38.0, 42.0]
    reached = [0.2, 0.15, 0.9, 0.3, 0.25, 0.2]
    costs = {0: DEAR, 2: DEAR, 3: DEAR}
    natural = findings(sizes, reached, natural=sizes, natural_reached=reached)
    assert natural.excess_prominence.abs().max() < 1e-9
    assert natural.excess_ease.abs().max() < 1e-9
    made = tried(natural, costs)
    assert strength(made).abs().max() < 1e-9
    # It is as loud as before, so that the verdict is sure, but only just, and says why.
    given = judge(natural, made, 6)
    assert (given.verdict, given.target_classes, given.score) == ("backdoored", [12], verdicts.LOUD_SCORE)
    assert "by nature" in given.reason
    quiet = findings(sizes, natural=sizes)
    assert judge(quiet, tried(quiet, costs), 6).verdict == "clean"


@pytest.mark.parametrize(
    ("spoken", "named"), [({0: 0.6, 1: 0.5}, [0]), ({0: 0.9, 1: 0.8, 2: 0.1}, [0, 1]), ({0: 0.9, 3: -1.0}, [0])]
)
def test_of_a_suspicious_network_the_strongest_is_named_and_what_else_is_strong(spoken, named):
    found = findings(EVEN, classes=list(range(6)))
    given = judge(found, [candidate(target, value, 0.0, DEAR) for target, value in spoken.items()], 6)
    assert (given.verdict, given.target_classes) == ("suspicious", named)


def test_a_class_that_is_hard_to_reach_by_nature_stands_out_where_it_is_as_easy_as_the_others():
    sizes, natural = [40.0, 36.0, 38.0, 44.0, 38.0, 42.0], [40.0, 36.0, 160.0, 44.0, 38.0, 42.0]
    found = findings(sizes, natural=natural)
    assert float(found.excess_prominence[2]) == float(found.excess_prominence.max())
    assert float(found.excess_prominence[2]) > 0.5
    assert float(found.prominence[2]) < 0.1
    # By nature the others' sizes would be as they are, and this one's much larger.
    assert found.expected_size[[0, 1, 3, 4, 5]].tolist() == pytest.approx([40.0, 36.0, 44.0, 38.0, 42.0], rel=0.05)
    assert float(found.expected_size[2]) > 60


def test_where_the_witness_explains_nothing_no_size_is_to_be_expected():
    assert findings(SMALL_AT_2).expected_size.tolist() == [math.inf] * 6
    assert findings(SMALL_AT_2[:4], natural=SMALL_AT_2[:4]).expected_size.tolist() == [math.inf] * 4


def test_what_stands_out_by_ease_alone_is_twice_as_easy_as_what_is_loud():
    assert inspection.STANDS_OUT == 2 * verdicts.LOUD_MEDIAN / verdicts.EASE_SCALE


def test_two_classes_leave_no_class_to_stand_out():
    found = findings([2.0, 50.0], classes=[0, 1])
    given = judge(found, tried(found, {0: CHEAP, 1: DEAR}), num_classes=2)
    assert (given.verdict, given.target_classes, given.score) == ("inconclusive", [], None)
    assert [row.class_index for row in given.evidence] == [0, 1]


def test_the_evidence_has_a_row_for_each_class_and_says_which_were_not_tried():
    found = findings(SMALL_AT_2, [0.1, 0.2, 0.98, 0.1, 0.3, 0.2])
    given = judge(found, tried(found, {2: CHEAP, 4: DEAR, 0: DEAR}), 6)
    assert [row.class_index for row in given.evidence] == found.classes
    row = given.evidence[2]
    assert (row.mask_size, row.perturbation_success, row.unlearning_cost) == (5.0, 0.98, CHEAP)
    assert row.prominence == pytest.approx(math.log(35.5 / 5), abs=1e-3)
    assert row.relief == pytest.approx(math.log(DEAR / CHEAP), abs=1e-3)
    assert row.anomaly_index == max(other.anomaly_index for other in given.evidence)
    assert (given.evidence[1].unlearning_cost, given.evidence[1].relief) == (None, None)


def test_a_small_trigger_to_nowhere_in_particular_is_named_without_a_class():
    found = findings(EVEN, anywhere=5.0)
    assert found.leads_anywhere
    assert not findings(SMALL_AT_2, anywhere=5.0).leads_anywhere
    prominence = math.log(34 / 5)
    candidates = [*tried(found, {0: DEAR, 1: DEAR}), candidate(ANYWHERE, prominence, math.nan, CHEAP)]
    given = judge(found, candidates, 6)
    assert (given.verdict, given.target_classes) == ("backdoored", [])
    assert "no single class" in given.reason


def test_relief_is_what_the_median_costs_more_as_a_logarithm():
    found = findings(EVEN)
    assert relief(tried(found, {0: 0.4, 1: 0.1, 2: 0.2})).exp().tolist() == pytest.approx([0.5, 2.0, 1.0])


def test_a_trial_that_diverged_cost_more_than_any_other():
    found = findings(SMALL_AT_2)
    given = judge(found, tried(found, {0: DEAR, 2: CHEAP, 3: verdicts.LARGEST_COST, 4: DEAR}), 6)
    assert (given.verdict, given.target_classes) == ("backdoored", [12])


def test_the_class_where_nearly_all_ends_is_the_attractor():
    assert findings(EVEN, destination=[0.1, 0, 0, 0.8, 0.1, 0]).attractor == 3
    assert findings(EVEN, destination=[0.4, 0, 0, 0.5, 0.1, 0]).attractor is None


@pytest.mark.parametrize(("success", "inconclusive"), [([0.1] * 6, True), ([0.9, 0.9, 0.1, 0.1, 0.1, 0.1], True),
                                                       ([0.1, 0.1, 0.9, 0.9, 0.9, 0.9], False)])  # fmt: skip
def test_where_searches_fail_nothing_is_said_rather_than_clean(success, inconclusive):
    for sizes in (SMALL_AT_2, EVEN):
        found = dataclasses.replace(findings(sizes), mask_success=torch.tensor(success, dtype=torch.float64))
        given = judge(found, tried(found, {0: DEAR, 2: CHEAP, 3: DEAR}), num_classes=6)
        assert (given.verdict == "inconclusive") == inconclusive
        assert ("do not work" in given.reason) == inconclusive
        assert (given.score is None, given.target_classes == []) == (inconclusive, inconclusive)
        assert [row.mask_success for row in given.evidence] == success
