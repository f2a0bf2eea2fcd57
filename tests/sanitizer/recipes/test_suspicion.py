"""Whom the default recipe suspects and how far it looks, from findings made by hand."""

import pytest
import torch

from worker.sanitizer.recipes.suspicion import Suspicion, bounds, suspect
from worker.sanitizer.report import Verdict
from worker.sanitizer.trigger import ANYWHERE, Triggers
from worker.sanitizer.verdict import Candidate


def masks(targets, size=36.0):
    number = len(targets)
    return Triggers(
        "mask", torch.tensor(targets), torch.full((number, 1, 2, 2), size / 4), torch.zeros(number, 1, 2, 2)
    )


def suspected(evidence, sure=()):
    """Whom these are suspected as: (target, prominence, cost) of each candidate, of median cost 0.06."""
    candidates = [Candidate(target, masks([target]), prominence, cost) for target, prominence, cost in evidence]
    verdict = Verdict(verdict="backdoored" if sure else "suspicious", reason="", target_classes=list(sure))
    suspicion = suspect(candidates, verdict)
    assert suspicion.bounds_T.tolist() == bounds(suspicion.triggers).tolist()
    return suspicion.targets


OTHERS = [(4, 0.0, 0.06), (5, 0.0, 0.06), (6, 0.0, 0.06), (7, 0.0, 0.06), (8, 0.0, 0.06)]


@pytest.mark.parametrize(
    ("evidence", "targets"),
    [
        # A small mask that costs little is suspected alone.
        ([(2, 2.0, 0.01), (3, 0.3, 0.05)], [2]),
        # Where the smallest mask is not the cheapest, either may be it; the one with more evidence comes first.
        ([(2, 1.2, 0.06), (3, 0.1, 0.01), (1, 0.0, 0.12), (0, -0.3, 0.06)], [3, 2]),
        # Of several that cannot be told apart only so many are taken.
        ([(2, 0.5, 0.06), (3, 0.4, 0.06), (1, 0.45, 0.06), (0, 0.3, 0.06)], [2, 1, 3]),
    ],
)
def test_those_against_whom_most_speaks_are_suspected_the_first_first(evidence, targets):
    assert suspected([*OTHERS, *evidence])[: len(targets)] == targets
    assert len(suspected([*OTHERS, *evidence])) <= 3
    assert targets != [2] or suspected([*OTHERS, *evidence]) == [2]


def test_every_class_that_the_verdict_is_sure_of_is_suspected():
    evidence = [*OTHERS, (0, 4.0, 0.01), (1, 2.6, 0.01), (2, 2.5, 0.01), (3, 2.4, 0.01)]
    assert suspected(evidence) == [0]
    assert suspected(evidence, sure=(0, 1, 2, 3)) == [0, 1, 2, 3]


def test_a_trigger_to_anywhere_that_was_tried_is_always_suspected():
    assert suspected([*OTHERS, (2, 2.0, 0.01), (ANYWHERE, 0.7, 0.2)]) == [2, ANYWHERE]


def test_a_suspicion_comes_apart_into_its_triggers():
    triggers = masks([3, 1]).join(masks([2], size=4.0))
    parts = Suspicion(triggers, bounds(triggers)).each()
    assert [part.targets for part in parts] == [[3], [1], [2]]
    assert [float(part.triggers.size()) for part in parts] == [36.0, 36.0, 4.0]
    assert torch.cat([part.bounds_T for part in parts]).tolist() == bounds(triggers).tolist()


def test_a_small_mask_may_grow_threefold_a_large_one_by_half_and_a_tiny_one_to_a_64th_of_the_image():
    sizes = [2.0, 5.0, 20.0, 40.0, 60.0]
    triggers = Triggers(
        "mask",
        torch.arange(4),
        (torch.tensor(sizes) / 784).view(5, 1, 1, 1).expand(5, 1, 28, 28),
        torch.zeros(5, 1, 28, 28),
    )
    assert bounds(triggers).tolist() == pytest.approx([12.25, 15.0, 49.0, 60.0, 90.0])
