"""Whom the default recipe suspects and how far it looks, from findings made by hand."""

import pytest
import torch

from worker.sanitizer.recipes.suspicion import bounds, suspect
from worker.sanitizer.report import Verdict
from worker.sanitizer.trigger import ANYWHERE, Triggers
from worker.sanitizer.verdict import Candidate, Findings


def masks(targets, size=36.0):
    number = len(targets)
    return Triggers(
        "mask", torch.tensor(targets), torch.full((number, 1, 2, 2), size / 4), torch.zeros(number, 1, 2, 2)
    )


def findings(sizes, reached, destination=None):
    number = len(sizes)
    return Findings(
        classes=list(range(number)),
        triggers=masks(list(range(number))),
        size=torch.tensor(sizes, dtype=torch.float64),
        anywhere=masks([ANYWHERE]),
        destination=torch.tensor(destination or [1 / number] * number, dtype=torch.float64),
        perturbation_success=torch.tensor(reached, dtype=torch.float64),
    )


def suspected(found, costs, anywhere=None, sure=()):
    candidates = [
        Candidate(target, found.triggers.take([target]), float(found.prominence[target]), cost)
        for target, cost in costs.items()
    ]
    if anywhere is not None:
        candidates.append(Candidate(ANYWHERE, found.anywhere, 1.8, anywhere))
    verdict = Verdict(verdict="backdoored" if sure else "suspicious", reason="", target_classes=list(sure))
    suspicion = suspect(found, candidates, verdict)
    assert suspicion.bounds_T.tolist() == bounds(suspicion.triggers).tolist()
    return suspicion.targets


REACHED = [0.2, 0.3, 0.9, 0.4, 0.25, 0.2]


@pytest.mark.parametrize(
    ("sizes", "costs", "targets"),
    [
        # A small mask that costs little is suspected alone.
        ([40.0, 38.0, 6.0, 36.0, 39.0, 41.0], {2: 0.01, 3: 0.06, 1: 0.05, 4: 0.07}, {2}),
        # Where the most reachable class is not the cheapest, either may be it.
        ([40.0, 38.0, 6.0, 36.0, 39.0, 41.0], {2: 0.05, 3: 0.06, 1: 0.003, 4: 0.07}, {2, 1}),
        # Where two cost all but the same, either may be it; of three the dearest is left out.
        ([40.0, 38.0, 6.0, 36.0, 39.0, 41.0], {2: 0.05, 3: 0.0101, 1: 0.01, 4: 0.0102}, {2, 1, 3}),
    ],
)
def test_the_most_reachable_and_the_cheapest_class_are_suspected(sizes, costs, targets):
    assert set(suspected(findings(sizes, REACHED), costs)) == targets


def test_every_class_that_the_verdict_is_sure_of_is_suspected():
    found = findings([40.0, 38.0, 6.0, 9.0, 8.0, 41.0], REACHED)
    costs = {2: 0.01, 3: 0.02, 1: 0.015, 4: 0.03}
    assert suspected(found, costs) == [2]
    assert set(suspected(found, costs, sure=(2, 3, 4))) == {2, 3, 4}


def test_a_trigger_to_anywhere_that_was_tried_comes_beside_the_cheapest_class():
    found = findings([40.0, 38.0, 35.0, 36.0, 39.0, 41.0], REACHED)
    assert set(suspected(found, {2: 0.05, 3: 0.02, 1: 0.06}, anywhere=0.5)) == {2, 3, ANYWHERE}


def test_a_small_mask_may_grow_threefold_a_large_one_by_half_and_a_tiny_one_to_a_64th_of_the_image():
    sizes = [2.0, 5.0, 20.0, 40.0, 60.0]
    triggers = Triggers(
        "mask",
        torch.arange(4),
        (torch.tensor(sizes) / 784).view(5, 1, 1, 1).expand(5, 1, 28, 28),
        torch.zeros(5, 1, 28, 28),
    )
    assert bounds(triggers).tolist() == pytest.approx([12.25, 15.0, 49.0, 60.0, 90.0])
