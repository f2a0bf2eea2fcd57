"""The verdict of findings made by hand."""

import pytest
import torch

from worker.sanitizer import verdict as verdicts
from worker.sanitizer.trigger import Triggers
from worker.sanitizer.verdict import Findings, inspect, judge, num_steps

CLASSES = [10, 11, 12, 13, 14, 15]
EVEN = [34.0, 41.0, 34.5, 38.0, 35.0, 36.0]
SMALL_AT_2 = [34.0, 41.0, 5.0, 38.0, 35.0, 36.0]


def findings(sizes, factors=None, reached=None, classes=None):
    size = torch.tensor(sizes, dtype=torch.float64)
    number = len(sizes)
    return Findings(
        classes=classes or CLASSES[:number],
        triggers=Triggers("mask", torch.arange(number), torch.ones(number, 1, 2, 2), torch.zeros(number, 1, 2, 2)),
        size=size,
        referee_size=size * torch.tensor(factors or [1.05] * number, dtype=torch.float64),
        perturbation_success=torch.tensor(reached or [0.2] * number, dtype=torch.float64),
        radius=1.5,
    )


@pytest.mark.parametrize(
    ("sizes", "factors", "verdict", "classes"),
    [
        (SMALL_AT_2, [1.0, 1.1, 8.0, 1.0, 1.05, 1.1], "backdoored", [12]),
        (SMALL_AT_2, None, "suspicious", [12]),
        (EVEN, [1.0, 1.1, 1.0, 6.0, 1.05, 1.1], "suspicious", [13]),
        (SMALL_AT_2, [1.0, 1.1, 1.0, 6.0, 1.05, 1.1], "suspicious", [12, 13]),
        (EVEN, None, "clean", []),
        ([20.0] * 6, None, "clean", []),
    ],
)
def test_two_statistics_must_agree_on_a_class(sizes, factors, verdict, classes):
    given = judge(findings(sizes, factors), num_classes=6)
    assert (given.verdict, given.target_classes) == (verdict, classes)
    assert given.reason
    assert (given.score > 1) == (verdict == "backdoored")


def test_two_classes_leave_no_class_to_stand_out():
    given = judge(findings([2.0, 50.0], [20.0, 1.0], classes=[0, 1]), num_classes=2)
    assert (given.verdict, given.target_classes, given.score) == ("inconclusive", [], None)
    assert [row.class_index for row in given.evidence] == [0, 1]


def test_the_evidence_has_a_row_for_each_class():
    given = judge(findings(SMALL_AT_2, [1.0, 1.1, 8.0, 1.0, 1.05, 1.1], [0.1, 0.2, 0.98, 0.1, 0.3, 0.2]), 6)
    assert [row.class_index for row in given.evidence] == CLASSES
    row = given.evidence[2]
    assert (row.mask_size, row.mask_size_after_forgetting, row.perturbation_success) == (5.0, 40.0, 0.98)
    assert row.anomaly_index == max(other.anomaly_index for other in given.evidence)
    assert row.growth == pytest.approx(float(torch.tensor(8.0 / 1.075).log()), abs=0.03)


def test_the_class_that_stands_out_is_the_first_candidate_and_there_are_never_more_than_three():
    alone = findings(SMALL_AT_2, [1.0, 1.1, 8.0, 1.0, 1.05, 1.1], [0.1, 0.2, 0.98, 0.1, 0.3, 0.2])
    assert alone.candidates()[0] == 2
    sizes = [3.0] * 5 + [40.0, 41.0, 42.0, 43.0, 44.0, 45.0]
    factors = [9.0] * 5 + [1.0, 1.1, 1.2, 1.05, 1.0, 1.1]
    crowd = findings(sizes, factors, [0.99] * 5 + [0.1] * 6, classes=list(range(11)))
    assert 1 <= len(crowd.candidates()) <= min(3, verdicts.MAX_CANDIDATES)
    nothing = findings(EVEN)
    assert 1 <= len(nothing.candidates()) <= 3


def test_inspecting_leaves_the_network_alone_and_advances_as_often_as_it_says(suspect, monkeypatch):
    monkeypatch.setattr(verdicts, "MASK_STEPS", 20)
    made = suspect()
    before, steps = made.tensors(), []
    bench = made.bench
    found = inspect(
        bench.network, before, bench.repair, bench.select, bench.num_classes,
        generator=bench.generator, advance=steps.append,
    )  # fmt: skip
    assert sum(steps) == num_steps()
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.tensors().items())
    assert found.classes == [0, 1, 2, 3]
    assert len(found.triggers) == len(found.size) == len(found.referee_size) == len(found.perturbation_success) == 4
