"""From statistics to one score per channel, and from scores of unlike layers to one ranking.

Shapes: C channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from worker.sanitizer.activations import ChannelStatistics

# The robust deviation of a normal sample equals its standard deviation under these factors.
MAD_TO_STD = 1.4826
MEAN_AD_TO_STD = 1.2533

Scores = dict[str, Tensor]


def activation_scores(
    clean: Mapping[str, ChannelStatistics],
    triggered: Mapping[str, ChannelStatistics] | None,
    *,
    criterion: str,
    aggregate: str,
    inputs: str,
) -> Scores:
    """The activation criterion per site: (C,) float64, in units of the activation (ratios have none).

    Args:
        clean: Statistics on clean images.
        triggered: Statistics on triggered images; needed unless `inputs` is `clean`.
        criterion: `linf` (arXiv 2002.12162), `l1`, `l2`, `mean` or a ratio, as in `activations.NORMS`.
        aggregate: `mean` or `max` over images.
        inputs: `clean`, `triggered`, or `difference` (triggered minus clean).
    """
    if inputs == "clean":
        return {name: state.value(criterion, aggregate) for name, state in clean.items()}
    assert triggered is not None
    scores = {name: state.value(criterion, aggregate) for name, state in triggered.items()}
    if inputs == "triggered":
        return scores
    return {name: score_C - clean[name].value(criterion, aggregate) for name, score_C in scores.items()}


def standardise(score_C: Tensor) -> Tensor:
    """Robust deviations from the layer's median: (s - median) / (1.4826 MAD), (C,) float64.

    The median does not saturate in narrow layers as mean and standard deviation do, where the largest z-score of n
    values is (n - 1)/sqrt(n). Where more than half of the channels are equal the MAD is zero and 1.2533 times the
    mean absolute deviation takes its place; a constant layer scores zero.
    """
    score_C = score_C.double()
    deviation_C = score_C - score_C.quantile(0.5)
    scale = MAD_TO_STD * deviation_C.abs().quantile(0.5)
    if scale <= torch.finfo(torch.float32).eps * score_C.abs().amax():
        scale = MEAN_AD_TO_STD * deviation_C.abs().mean()
    return torch.zeros_like(deviation_C) if scale == 0 else deviation_C / scale
