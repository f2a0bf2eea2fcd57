"""Whom the default recipe suspects and how far it looks, from candidates made by hand."""

import math

import pytest
import torch

from worker.sanitizer.recipes.suspicion import bounds, suspect
from worker.sanitizer.report import Verdict
from worker.sanitizer.trigger import ANYWHERE, Triggers
from worker.sanitizer.verdict import Candidate, Said


def masks(targets, size=36.0):
    number = len(targets)
    return Triggers(
        "mask", torch.tensor(targets), torch.full((number, 1, 2, 2), size / 4), torch.zeros(number, 1, 2, 2)
    )


def candidate(target, prominence, ease, cost):
    """With nothing natural to discount."""
    return Candidate(target, masks([target]), Said(prominence, ease, prominence, ease), cost)


def suspected(candidates, sure=(), named=()):
    """The targets suspected among (target, prominence, ease, cost)."""
    made = [candidate(*one) for one in candidates]
    verdict = Verdict(verdict="backdoored" if sure else "suspicious", reason="", target_classes=list(sure or named))
    suspicion = suspect(made, verdict)
    assert suspicion.bounds_T.tolist() == bounds(suspicion.triggers).tolist()
    return suspicion.targets


PLAIN = [(7, 0.0, 0.0, 0.05), (8, 0.0, 0.0, 0.05), (9, 0.0, 0.0, 0.05)]


@pytest.mark.parametrize(
    ("candidates", "targets"),
    [
        # The strongest alone, where no other is close to it.
        ([(2, 1.0, 2.0, 0.05), *PLAIN], [2]),
        # Two that cannot be told apart, the stronger first; what is weaker by more is left out.
        ([(2, 0.40, 0.8, 0.05), (3, 0.44, 0.8, 0.05), (4, -0.1, 0.2, 0.05), *PLAIN], [3, 2]),
        # Of four that are close, three.
        ([(1, 0.40, 0.8, 0.05), (2, 0.41, 0.8, 0.05), (3, 0.42, 0.8, 0.05), (4, 0.43, 0.8, 0.05), *PLAIN], [4, 3, 2]),
        # What costs little to unlearn is taken where nothing is sure, whatever else speaks against it.
        ([(2, 3.0, 4.0, 0.05), (3, 0.0, 0.0, 0.02), *PLAIN], [2, 3]),
        # And what has a mask of less than a third of the median's size, though it be dear to unlearn.
        ([(2, 3.0, 4.0, 0.05), (3, math.log(3.1), -1.0, 0.09), *PLAIN], [2, 3]),
        ([(2, 3.0, 4.0, 0.05), (3, math.log(2.9), -1.0, 0.09), *PLAIN], [2]),
    ],
)
def test_the_strongest_classes_and_the_cheap_ones_are_suspected(candidates, targets):
    assert suspected(candidates) == targets


@pytest.mark.parametrize(
    ("excess", "targets", "small"),
    [
        # (excess + relief + half the ease) / 3 is beyond 0.75, or not.
        (1.76, [2], True),
        (1.74, [2, 4], True),
        # Beyond doubt, of a mask that is not small: how loud another class is does not matter to the course either.
        (1.05, [2], False),
    ],
)
def test_beside_a_class_that_is_sure_cheap_ones_are_left_alone_and_loud_ones_where_it_leaves_no_doubt(
    excess, targets, small
):
    ease = 1.0 if small else 2.5
    loud = Candidate(4, masks([4], size=3.0), Said(1.0, 2.0, 0.0, 0.0, 3.0), 0.05)
    made = [
        Candidate(2, masks([2]), Said(0.2, 0.0, excess, ease), 0.05),
        candidate(3, 0.0, 0.0, 0.02),
        loud,
        *(candidate(*one) for one in PLAIN),
    ]
    suspicion = suspect(made, Verdict(verdict="backdoored", reason="", target_classes=[2]))
    assert suspicion.targets == targets
    assert suspicion.of_small_masks == small
    # A loud class reaches as far as a sure one.
    assert suspicion.taught_T.tolist() == pytest.approx([108.0, 9.0][: len(targets)])


@pytest.mark.parametrize(("prominence", "targets"), [(0.51, [4, 2]), (0.49, [2])])
def test_a_class_that_is_rather_loud_is_unlearnt_widely_though_the_verdict_names_another(prominence, targets):
    loud = Candidate(4, masks([4], size=3.0), Said(prominence, 2 * prominence, 0.0, 0.0, 3.0), 0.05)
    made = [candidate(2, 0.3, 0.6, 0.05), loud, *(candidate(*one) for one in PLAIN)]
    suspicion = suspect(made, Verdict(verdict="suspicious", reason="", target_classes=[2]))
    assert suspicion.targets == targets
    assert suspicion.taught_T.tolist()[: len(targets) - 1] == pytest.approx([9.0][: len(targets) - 1])
    assert not suspicion.of_small_masks
    sure = suspect(made, Verdict(verdict="backdoored", reason="", target_classes=[2]))
    assert sorted(sure.targets) == sorted(targets)
    assert sure.of_small_masks == (4 in targets)


@pytest.mark.parametrize(
    ("times", "judged", "targets"),
    [(8.1, "backdoored", [2, 4]), (7.9, "backdoored", [2]), (8.1, "suspicious", [4, 2]), (7.9, "suspicious", [2])],
)
def test_a_mask_eight_times_smaller_than_the_median_is_unlearnt_widely_whatever_nature_says(times, judged, targets):
    # Nature has it too, but for a little: the witness has learnt the backdoor. Another class is beyond doubt.
    tiny = Candidate(4, masks([4], size=3.0), Said(math.log(times), 0.0, 0.1, 0.0, 3.3), 0.05)
    made = [candidate(2, 2.0, 5.0, 0.05), tiny, *(candidate(*one) for one in PLAIN)]
    suspicion = suspect(made, Verdict(verdict=judged, reason="", target_classes=[2]))
    assert suspicion.targets == targets
    if 4 in targets:
        row = targets.index(4)
        assert float(suspicion.bounds_T[row]) == pytest.approx(float(bounds(tiny.trigger)[0]))
        assert float(suspicion.taught_T[row]) == pytest.approx(2 * float(bounds(tiny.trigger)[0]))


def test_of_several_classes_that_are_rather_loud_the_loudest_is_unlearnt_and_beyond_doubt_none():
    louder, less = (
        Candidate(target, masks([target]), Said(loud, 2 * loud, 0.0, 0.0), 0.05)
        for target, loud in ((4, 0.7), (5, 0.6))
    )
    made = [less, louder, candidate(2, 0.3, 0.6, 0.05), *(candidate(*one) for one in PLAIN)]
    verdict = Verdict(verdict="backdoored", reason="", target_classes=[2])
    assert suspect(made, verdict).targets == [2, 4]
    certain = [less, louder, candidate(2, 3.0, 4.0, 0.05), *(candidate(*one) for one in PLAIN)]
    assert suspect(certain, verdict).targets == [2]


@pytest.mark.parametrize(("relief", "targets"), [(-0.04, [4, 2]), (-0.06, [2])])
def test_a_rather_loud_class_that_is_dear_to_unlearn_is_left_alone(relief, targets):
    loud = Candidate(4, masks([4]), Said(0.7, 1.4, 0.0, 0.0), 0.05 * math.exp(-relief))
    made = [candidate(2, 0.3, 0.6, 0.05), loud, *(candidate(*one) for one in PLAIN)]
    assert suspect(made, Verdict(verdict="suspicious", reason="", target_classes=[2])).targets == targets


def test_the_next_of_the_rather_loud_takes_the_place_of_one_that_is_dear():
    dear = Candidate(4, masks([4]), Said(0.7, 1.4, 0.0, 0.0), 0.06)
    next_ = Candidate(5, masks([5]), Said(0.6, 1.2, 0.0, 0.0), 0.05)
    made = [candidate(2, 0.3, 0.6, 0.05), dear, next_, *(candidate(*one) for one in PLAIN)]
    assert suspect(made, Verdict(verdict="suspicious", reason="", target_classes=[2])).targets == [5, 2]


@pytest.mark.parametrize(
    ("strengths", "targets"),
    [
        # Stronger than the loud one, and as strong as the strongest but for what cannot be told apart.
        ((0.4, 0.3), [4, 2, 3]),
        ((0.4, 0.24), [4, 2]),
        # Weaker than the loud one.
        ((0.4, 0.1), [4, 2]),
        ((0.1, 0.1), [4]),
        # The verdict is sure of the strongest, and names it alone; a loud one is doubt beside it.
        ((0.6, 0.5), [4, 2]),
    ],
)
def test_where_the_verdict_is_sure_by_loudness_alone_the_stronger_classes_come_beside_the_loud(strengths, targets):
    loud = Candidate(4, masks([4], size=3.0), Said(0.9, 1.8, 0.3, 0.6, 3.0), 0.05)
    first, second = (
        Candidate(target, masks([target], size=3.0), Said(0.0, 0.0, 1.5 * strength, 3 * strength, 4.0), 0.05)
        for target, strength in zip((2, 3), strengths, strict=True)
    )
    named = [2] if strengths[0] > 0.5 else [4]
    made = [first, second, loud, *(candidate(*one) for one in PLAIN)]
    suspicion = suspect(made, Verdict(verdict="backdoored", reason="", target_classes=named))
    assert sorted(suspicion.targets) == sorted(targets)
    assert suspicion.of_small_masks
    assert suspicion.by_loudness == (named == [4])
    # They are not unlearnt widely: no mask of theirs is small.
    widely = {
        target for target, taught in zip(suspicion.targets, suspicion.taught_T.tolist(), strict=True) if taught > 4
    }
    assert widely == {4}


@pytest.mark.parametrize(
    ("excess", "expected", "bound", "taught"),
    [
        # A mask of less than a third of what is natural is small.
        (1.11, 7.0, 4.5, 9.0),
        (1.09, 7.0, 3.5, 3.5),
        (1.09, 5.0, 2.5, 2.5),
    ],
)
def test_a_sure_class_whose_mask_is_not_small_is_not_unlearnt_widely(excess, expected, bound, taught):
    one = Candidate(2, masks([2], size=3.0), Said(0.0, 0.0, excess, 6.0, expected), 0.05)
    made = [one, *(candidate(*plain) for plain in PLAIN)]
    suspicion = suspect(made, Verdict(verdict="backdoored", reason="", target_classes=[2]))
    assert suspicion.targets == [2]
    assert suspicion.bounds_T.tolist() == pytest.approx([bound])
    assert suspicion.taught_T.tolist() == pytest.approx([taught])


@pytest.mark.parametrize(("less", "targets"), [(0.6, [4]), (0.8, [4, 5])])
def test_where_one_is_loud_only_those_that_are_loud_too_come_beside_it(less, targets):
    loud = [
        Candidate(target, masks([target]), Said(value, 2 * value, 0.0, 0.0), 0.05)
        for target, value in ((4, 0.9), (5, less))
    ]
    made = [*loud, *(candidate(*one) for one in PLAIN)]
    assert suspect(made, Verdict(verdict="backdoored", reason="", target_classes=[4])).targets == targets


def test_the_strongest_reaches_where_nothing_is_known_of_nature_though_another_is_louder():
    loud = Candidate(4, masks([4], size=3.0), Said(0.6, 1.2, 0.0, 0.0, math.inf), 0.05)
    strong = Candidate(2, masks([2], size=3.0), Said(0.3, 0.6, 0.3, 0.6, math.inf), 0.05)
    made = [loud, strong, *(candidate(*one) for one in PLAIN)]
    suspicion = suspect(made, Verdict(verdict="suspicious", reason="", target_classes=[2]))
    assert suspicion.targets == [4, 2]
    assert suspicion.taught_T.tolist() == pytest.approx([9.0, 9.0])


def test_a_cheap_class_is_suspected_where_nothing_is_sure_though_a_mask_leads_anywhere():
    made = [
        candidate(3, 0.0, 0.0, 0.02),
        candidate(2, 0.4, 0.8, 0.05),
        *(candidate(*one) for one in PLAIN),
        candidate(ANYWHERE, 0.2, math.nan, 0.05),
    ]
    verdict = Verdict(verdict="suspicious", reason="", target_classes=[2])
    assert set(suspect(made, verdict).targets) == {2, 3, ANYWHERE}


def test_a_trigger_that_leads_anywhere_alone_leaves_a_loud_class_suspected_and_a_small_mask_and_no_cheap_one():
    made = [
        Candidate(4, masks([4]), Said(1.0, 2.0, 0.0, 0.0), 0.05),
        candidate(3, 0.0, 0.0, 0.02),
        candidate(5, 2.0, -2.0, 0.09),
        *(candidate(*one) for one in PLAIN),
        candidate(ANYWHERE, 3.0, math.nan, 0.01),
    ]
    verdict = Verdict(verdict="backdoored", reason="", target_classes=[])
    assert suspect(made, verdict).targets == [4, 5, ANYWHERE]
    quiet = [one for one in made if one.target not in (4, 5)]
    assert suspect(quiet, verdict).targets == [ANYWHERE]


@pytest.mark.parametrize(("expected", "bound"), [(5.0, 2.5), (math.inf, 4.5)])
def test_what_is_suspected_beside_a_sure_class_may_not_grow_beyond_half_of_what_is_natural(expected, bound):
    small = Said(2.0, 0.0, 2.0, 0.0, expected)
    beside = Candidate(3, masks([3], size=3.0), small, 0.05)
    made = [candidate(2, 3.0, 4.0, 0.05), beside, *(candidate(*one) for one in PLAIN)]
    suspicion = suspect(made, Verdict(verdict="backdoored", reason="", target_classes=[2]))
    assert suspicion.targets == [2, 3]
    assert suspicion.bounds_T.tolist() == pytest.approx([54.0, bound])
    assert suspicion.taught_T.tolist() == pytest.approx([108.0, bound])


def test_a_sure_class_may_always_have_a_64th_of_the_image():
    def mask(target):
        return Triggers("mask", torch.tensor([target]), torch.full((1, 1, 28, 28), 4 / 784), torch.zeros(1, 1, 28, 28))

    made = [Candidate(2, mask(2), Said(0.0, 0.0, 0.2, 9.0, 5.0), 0.05)]
    made += [Candidate(target, mask(target), Said(0.0, 0.0, 0.0, 0.0, 5.0), 0.05) for target in (7, 8, 9)]
    sure = suspect(made, Verdict(verdict="backdoored", reason="", target_classes=[2]))
    assert (sure.targets, sure.taught_T.tolist()) == ([2], pytest.approx([784 / 64]))
    unsure = suspect(made, Verdict(verdict="suspicious", reason="", target_classes=[2]))
    assert (unsure.targets, unsure.taught_T.tolist()) == ([2], pytest.approx([2.5]))


def test_classes_that_the_verdict_is_sure_of_are_suspected_however_far_apart():
    candidates = [(2, 3.0, 4.0, 0.05), (3, 1.0, 2.0, 0.05), *PLAIN]
    assert suspected(candidates) == [2]
    assert suspected(candidates, sure=(2, 3)) == [2, 3]


def test_a_class_that_the_verdict_names_for_one_loud_statistic_is_suspected_too():
    candidates = [(2, 2.9, 1.0, 0.05), (3, 0.0, 9.0, 0.05), *PLAIN]
    assert suspected(candidates) == [2]
    assert suspected(candidates, named=(3,)) == [2, 3]


def test_a_trigger_to_anywhere_that_was_tried_comes_beside_the_strongest_class():
    assert suspected([(2, 1.0, 2.0, 0.05), *PLAIN, (ANYWHERE, 1.8, math.nan, 0.5)]) == [2, ANYWHERE]


def test_a_small_mask_may_grow_threefold_a_large_one_by_half_and_a_tiny_one_to_a_64th_of_the_image():
    sizes = [2.0, 5.0, 20.0, 40.0, 60.0]
    triggers = Triggers(
        "mask",
        torch.arange(4),
        (torch.tensor(sizes) / 784).view(5, 1, 1, 1).expand(5, 1, 28, 28),
        torch.zeros(5, 1, 28, 28),
    )
    assert bounds(triggers).tolist() == pytest.approx([12.25, 15.0, 49.0, 60.0, 90.0])


@pytest.mark.parametrize(
    ("sure", "expected", "bound", "taught"),
    [
        # What is suspected surely is unlearnt to twice the bound.
        (True, 3.0, 4.5, 9.0),
        (True, math.inf, 4.5, 9.0),
        # Where nothing is sure a mask may grow to half of what is natural, and never beyond a sure one's bound.
        (False, 3.0, 1.5, 1.5),
        (False, 6.0, 3.0, 3.0),
        (False, 100.0, 4.5, 4.5),
        # And where nothing is known of nature as far as that, for the strongest.
        (False, math.inf, 4.5, 9.0),
    ],
)
def test_how_far_a_mask_may_grow_hangs_on_what_is_natural(sure, expected, bound, taught):
    said = Said(2.0, 4.0, 2.0, 4.0, expected)
    made = [Candidate(2, masks([2], size=3.0), said, 0.05), *(candidate(*one) for one in PLAIN)]
    verdict = Verdict(verdict="backdoored" if sure else "suspicious", reason="", target_classes=[2])
    suspicion = suspect(made, verdict)
    assert suspicion.targets[0] == 2
    assert float(suspicion.bounds_T[0]) == pytest.approx(bound)
    assert float(suspicion.taught.bounds_T[0]) == pytest.approx(taught)
    assert suspicion.taught.targets == suspicion.targets


def test_a_mask_that_leads_anywhere_is_unlearnt_at_the_bound_of_all():
    made = [candidate(2, 1.0, 2.0, 0.05), candidate(ANYWHERE, 2.0, math.nan, 0.05), *(candidate(*one) for one in PLAIN)]
    suspicion = suspect(made, Verdict(verdict="backdoored", reason="", target_classes=[2]))
    assert ANYWHERE in suspicion.targets
    assert suspicion.taught_T.tolist() == suspicion.bounds_T.tolist() == bounds(suspicion.triggers).tolist()


@pytest.mark.parametrize(
    ("sure", "statistics", "small"),
    [
        # A patch; a change of the whole image that a large mask stands for; a class that nature explains and is loud.
        ([2], Said(2.0, 1.0, 2.0, 1.0), True),
        ([2], Said(0.7, 6.0, 0.7, 6.0), False),
        ([2], Said(1.0, 2.0, 0.0, 0.2), True),
        # A trigger that leads anywhere has no class to name; and where nothing is sure nothing is said of masks.
        ([], Said(0.1, 0.1, 0.1, 0.1), True),
        (None, Said(2.0, 0.0, 2.0, 0.0), False),
    ],
)
def test_small_masks_and_loud_classes_are_told_from_large_masks(sure, statistics, small):
    relief = 0.02 if statistics.ease == 2.0 else 0.05
    made = [Candidate(2, masks([2]), statistics, relief), *(candidate(*one) for one in PLAIN)]
    verdict = Verdict(verdict="suspicious" if sure is None else "backdoored", reason="", target_classes=sure or [])
    assert suspect(made, verdict).of_small_masks == small
