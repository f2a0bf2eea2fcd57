"""What is answered about a repair: the worst that is known, in one sentence, and why no more is said."""

import pytest

from worker.sanitizer.recipes.answer import status_of


def answered(estimate=0.1, left=(), *, is_sure=True, by_loudness=False, share_kept=1.0):
    return status_of(estimate, 0.1, left, is_sure=is_sure, by_loudness=by_loudness, share_kept=share_kept)


@pytest.mark.parametrize(
    ("estimate", "status"),
    [(0.1, "repaired"), (0.11, "partly_repaired"), (0.5, "partly_repaired"), (0.51, "not_repaired")],
)
def test_the_estimate_decides_first(estimate, status):
    assert answered(estimate)[0] == status
    # Whatever else is in doubt, triggers that work are the worst that is known.
    if status != "repaired":
        assert answered(estimate, [3], is_sure=False) == answered(estimate)


@pytest.mark.parametrize(
    ("doubts", "said"),
    [
        ({"left": [3, 7]}, "to class 3, 7"),
        ({"left": [3], "is_sure": False}, "to class 3"),
        ({"is_sure": False}, "sure of no class"),
        ({"is_sure": False, "by_loudness": True}, "sure of no class"),
        ({"by_loudness": True}, "nature explains"),
    ],
)
def test_each_doubt_withholds_repaired_and_says_which(doubts, said):
    status, reason = answered(**doubts)
    assert status == "partly_repaired"
    assert said in reason
    assert reason.startswith(answered()[1])


@pytest.mark.parametrize("given", [{}, {"estimate": 0.7}, {"left": [3]}])
def test_a_repair_that_went_only_part_of_the_way_says_so_whatever_else_it_says(given):
    status, reason = answered(**given)
    assert answered(**given, share_kept=0.85) == (
        status,
        f"{reason} Of the way from the pruned network to the repaired one 85% fits the accuracy budget.",
    )
