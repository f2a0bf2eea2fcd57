"""The curve of a ranking: nested masks in the ranking's order, each judged on the selection split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from worker.sanitizer.evaluate import accuracy
from worker.sanitizer.masks import Ranking, from_ranking, silenced
from worker.sanitizer.network import Network, Site
from worker.sanitizer.trigger import Triggers, success


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """A nested mask and what the selection split says of it.

    Attributes:
        count: Channels it silences.
        accuracy: Clean accuracy.
        success: The largest success of the synthesised triggers that guided, None where there were none.
    """

    count: int
    accuracy: float
    success: float | None = None


def grid(num_channels: int, *, num_points: int, max_fraction: float) -> list[int]:
    """Counts of pruned channels, increasing from 0 and dense at the start, where a backdoor's few channels lie.

    The k-th of m points is the rounded square of k/m of the way to `max_fraction` of the channels.
    """
    largest = max(1, round(max_fraction * num_channels))
    return sorted({0, *(max(1, round(largest * (k / num_points) ** 2)) for k in range(1, num_points + 1))})


def sweep(
    network: Network,
    sites: Sequence[Site],
    ranking: Ranking,
    counts: Sequence[int],
    pixels_NCHW: Tensor,
    labels_N: Tensor,
    *,
    triggers: Sequence[Triggers] = (),
    advance: Callable[[int], None] = lambda _: None,
) -> list[SweepPoint]:
    """The clean accuracy, and the triggers' largest success, under each nested mask; the network is as before then."""
    points = []
    for count in counts:
        bounded = min(count, len(ranking))
        with silenced(network, from_ranking(sites, ranking, bounded)):
            shares = [float(success(network, one, pixels_NCHW, labels_N).amax()) for one in triggers]
            points.append(SweepPoint(bounded, accuracy(network, pixels_NCHW, labels_N), max(shares, default=None)))
        advance(1)
    return points
