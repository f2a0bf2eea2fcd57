"""The curve of a ranking: nested masks in the ranking's order, each judged on images to choose with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.sanitizer.evaluate import log_probabilities, mean_and_error, recalls
from worker.sanitizer.masks import Ranking, from_ranking, silenced
from worker.sanitizer.network import Network, Site
from worker.sanitizer.trigger import Triggers, success


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """A nested mask and what the images to choose with say of it.

    Attributes:
        count: Channels it silences.
        accuracy: Clean accuracy.
        success: The largest success of the synthesised triggers that guided, None where there were none.
        recall_drop: The largest loss of any class's recall against the first point.
        label_drop: The mean fall of the label's probability against the first point. It tells of accuracy lost with
            half the error that counts have: an answer that was unsure before says little.
        label_error: Its standard error.
    """

    count: int
    accuracy: float
    success: float | None = None
    recall_drop: float = 0.0
    label_drop: float = 0.0
    label_error: float = 0.0

    @property
    def success_at_most(self) -> float:
        """The success, all where no trigger guided."""
        return 1.0 if self.success is None else self.success


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
    """What each nested mask does to accuracy, recalls and the triggers' success; the network is as before afterwards.

    Args:
        network: The network.
        sites: Those that the ranking names.
        ranking: Channels in the order in which they are silenced.
        counts: Of silenced channels, the first of them 0.
        pixels_NCHW: Images to choose with, none of them held out.
        labels_N: Their labels.
        triggers: Synthesised triggers that guide.
        advance: Called with 1 after each mask.
    """
    points: list[SweepPoint] = []
    first: Answers | None = None
    for count in counts:
        bounded = min(count, len(ranking))
        with silenced(network, from_ranking(sites, ranking, bounded)):
            shares = [float(success(network, one, pixels_NCHW, labels_N).amax()) for one in triggers]
            now = answers(network, pixels_NCHW, labels_N)
        first = first or now
        points.append(compared(bounded, first, now, labels_N, max(shares, default=None)))
        advance(1)
    return points


@dataclass(frozen=True, slots=True)
class Answers:
    """What a network says to N images: the class, (N,) int64, and the probability of the label, (N,) float64."""

    predicted_N: Tensor
    label_N: Tensor


def answers(network: Network, pixels_NCHW: Tensor, labels_N: Tensor) -> Answers:
    """The network's answers to these images."""
    answers_NK = log_probabilities(network, pixels_NCHW)
    return Answers(
        predicted_N=answers_NK.argmax(dim=1),
        label_N=answers_NK.gather(1, labels_N.unsqueeze(1)).squeeze(1).double().exp(),
    )


def compared(count: int, first: Answers, now: Answers, labels_N: Tensor, share: float | None = None) -> SweepPoint:
    """What answers to the same images say of a network that was changed; `share` is the triggers' success."""
    label_drop, label_error = mean_and_error(first.label_N - now.label_N)
    return SweepPoint(
        count=count,
        accuracy=float((now.predicted_N == labels_N).double().mean()),
        success=share,
        recall_drop=worst_recall_drop(first.predicted_N, now.predicted_N, labels_N),
        label_drop=label_drop,
        label_error=label_error,
    )


def worst_recall_drop(before_N: Tensor, after_N: Tensor, labels_N: Tensor) -> float:
    """The largest loss of any class's recall between two predictions of the same images; negative if all gained."""
    num_classes = int(torch.stack([labels_N, before_N, after_N]).amax()) + 1
    drop_K = recalls(before_N, labels_N, num_classes) - recalls(after_N, labels_N, num_classes)
    return float(drop_K[~drop_K.isnan()].amax())
