"""The split is disjoint, stratified, near its fractions, and a function of its arguments alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.sanitizer.dataset import split

FRACTIONS = (0.4, 0.3, 0.3)


@settings(max_examples=80, deadline=None)
@given(
    labels=st.lists(st.integers(0, 6), max_size=120),
    fractions=st.sampled_from([FRACTIONS, (0.5, 0.5), (1.0,), (0.2, 0.1), (0.01, 0.99)]),
    seed=st.integers(0, 2**63 - 1),
)
def test_parts_are_disjoint_sorted_stratified_and_of_the_right_size(labels, fractions, seed):
    labels_N = torch.tensor(labels, dtype=torch.int64)
    parts = split(labels_N, fractions, seed)
    assert len(parts) == len(fractions)
    joined = torch.cat(parts)
    assert joined.unique().numel() == joined.numel()
    if sum(fractions) == pytest.approx(1):
        assert joined.sort().values.tolist() == list(range(len(labels)))
    for part in parts:
        assert part.dtype == torch.int64
        assert part.tolist() == sorted(part.tolist())
    for label in set(labels):
        if labels.count(label) >= len(fractions):
            assert all(bool((labels_N[part] == label).any()) for part in parts)


def test_sizes_follow_the_fractions_over_classes_of_five():
    labels_N = torch.arange(10).repeat_interleave(5)
    sizes = [len(part) for part in split(labels_N, FRACTIONS, 0)]
    assert sizes == [20, 15, 15]


def test_large_classes_are_split_exactly():
    labels_N = torch.arange(4).repeat(100)
    for part, fraction in zip(split(labels_N, FRACTIONS, 1), FRACTIONS, strict=True):
        assert torch.bincount(labels_N[part]).tolist() == [round(100 * fraction)] * 4


def test_the_global_generator_is_neither_read_nor_moved():
    labels_N = torch.arange(4).repeat(20)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = split(labels_N, FRACTIONS, 7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = split(labels_N, FRACTIONS, 7)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_another_seed_gives_another_split_of_the_same_sizes():
    labels_N = torch.arange(4).repeat(20)
    first, second = split(labels_N, FRACTIONS, 0), split(labels_N, FRACTIONS, 1)
    assert [len(part) for part in first] == [len(part) for part in second]
    assert not torch.equal(first[0], second[0])


def test_renaming_classes_in_order_and_another_integer_dtype_change_nothing():
    labels_N = torch.arange(4).repeat(20)
    for other in (labels_N * 3 + 5, labels_N.to(torch.int32)):
        pairs = zip(split(labels_N, FRACTIONS, 3), split(other, FRACTIONS, 3), strict=True)
        assert all(torch.equal(one, two) for one, two in pairs)


def test_the_labels_are_left_as_they_were():
    labels_N = torch.arange(4).repeat(5)
    before = labels_N.clone()
    split(labels_N, FRACTIONS, 0)
    assert torch.equal(labels_N, before)


@pytest.mark.parametrize("fractions", [(), (0.5, 0.6), (0.0, 1.0), (-0.1, 0.5), (float("nan"),)])
def test_impossible_fractions_are_an_error(fractions):
    with pytest.raises(ValueError, match="fractions"):
        split(torch.arange(4), fractions, 0)
