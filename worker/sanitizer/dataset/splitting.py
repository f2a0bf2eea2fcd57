"""Split a labelled set into disjoint stratified parts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def split(labels_N: Tensor, fractions: Sequence[float], seed: int) -> tuple[Tensor, ...]:
    """Return one ascending int64 index tensor per fraction.

    Parts are disjoint. Each class is dealt by itself, in a seeded order, and a class with at least as many images as
    there are parts is in every part. What rounding owes a part in one class, it gets in the next, so that each part's
    size is within a few images of its fraction. Fractions that add to less than 1 leave images out. The result depends
    on the arguments alone: neither reads nor moves torch's global generator.

    Raises:
        ValueError: a fraction is not above 0, or they add to more than 1.
    """
    total = math.fsum(fractions)
    if not fractions or any(not fraction > 0 for fraction in fractions) or total > 1 + 1e-9:
        raise ValueError("fractions must be above 0 and add to at most 1")
    generator = torch.Generator().manual_seed(seed)
    # What is left out is dealt like a part of its own, and dropped at the end.
    shares = [*fractions, max(0.0, 1 - total)] if total < 1 - 1e-9 else list(fractions)
    owed = [0.0] * len(shares)
    parts: list[list[Tensor]] = [[] for _ in shares]
    for label in torch.unique(labels_N).tolist():
        members = torch.nonzero(labels_N == label).reshape(-1)
        members = members[torch.randperm(len(members), generator=generator)]
        counts = _deal(len(members), shares, owed, num_required=len(fractions))
        start = 0
        for part, count in zip(parts, counts, strict=True):
            part.append(members[start : start + count])
            start += count
    empty = [torch.empty(0, dtype=torch.int64)]
    return tuple(torch.cat(empty + part).sort().values for part in parts[: len(fractions)])


def _deal(num_images: int, shares: list[float], owed: list[float], *, num_required: int) -> list[int]:
    """Divide the images of one class, updating what each part is owed by rounding."""
    for index, share in enumerate(shares):
        owed[index] += num_images * share
    least = 1 if num_images >= num_required else 0
    counts = [least if index < num_required else 0 for index in range(len(shares))]
    for _ in range(num_images - sum(counts)):
        # The part that is owed most is next; of equals the first.
        neediest = max(range(len(shares)), key=lambda index: owed[index] - counts[index])
        counts[neediest] += 1
    for index, count in enumerate(counts):
        owed[index] -= count
    return counts
