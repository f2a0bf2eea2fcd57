"""From statistics to one score per channel, and from scores of unlike layers to one ranking.

Shapes: N images, C channels, I input channels of a group, H height, W width of a kernel.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from worker.sanitizer.activations import ChannelStatistics

# The robust deviation of a normal sample equals its standard deviation under these factors.
MAD_TO_STD = 1.4826
MEAN_AD_TO_STD = 1.2533
# BackdoorBench's width for batches of some hundred images; the paper's 0.01 leaves nearly every image alone in a bin.
ENTROPY_BIN = 0.1

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


def mean_activation(clean: Mapping[str, ChannelStatistics]) -> Scores:
    """Mean over images and positions of the activation map per site: (C,) float64; Fine-Pruning prunes the lowest.

    Source: Liu, Dolan-Gavitt, Garg, "Fine-Pruning", RAID 2018.
    """
    return {name: state.mean("mean") for name, state in clean.items()}


def lipschitz_bound(weight_CIHW: Tensor, gain_C: Tensor | None = None) -> Tensor:
    """Upper bound of each output channel's Lipschitz constant: (C,) float64.

    σ_max(W_c as an I × HW matrix) times |gain_c|, where the gain is that of the norm behind the convolution. Source:
    Zheng et al., "Data-free Backdoor Removal based on Channel Lipschitzness", ECCV 2022 (with the norm
    folded into the weight).

    Args:
        weight_CIHW: The convolution's weight.
        gain_C: `norm_gain` of its batch norm; None where there is none.
    """
    bound_C: Tensor = torch.linalg.matrix_norm(weight_CIHW.detach().flatten(2).double(), ord=2)
    return bound_C if gain_C is None else bound_C * gain_C.double().abs()


def norm_gain(scale_C: Tensor | None, variance_C: Tensor, eps: float) -> Tensor:
    """What a batch norm in inference mode multiplies a channel by: γ / √(σ² + ε), (C,) float64."""
    root_C = (variance_C.detach().double() + eps).sqrt()
    return 1 / root_C if scale_C is None else scale_C.detach().double() / root_C


def norm_divergence(
    mean_C: Tensor, variance_C: Tensor, stored_mean_C: Tensor, stored_variance_C: Tensor, eps: float
) -> Tensor:
    """KL divergence of the batch's normal distribution from the stored one, per channel: (C,) float64, in nats.

    ½ ln(v₂/v₁) + (v₁ + (µ₁ - µ₂)²) / (2 v₂) - ½ with 1 the batch and 2 what the batch norm stores. Source: Zheng et
    al., "Pre-activation Distributions Expose Backdoor Neurons", NeurIPS 2022, BNP. As the norm itself does, ε is
    added to both variances, so that a dead channel diverges by nothing.
    """
    batch_C, stored_C = variance_C.double() + eps, stored_variance_C.detach().double() + eps
    apart_C = (mean_C.double() - stored_mean_C.detach().double()).square()
    return 0.5 * (stored_C / batch_C).log() + (batch_C + apart_C) / (2 * stored_C) - 0.5


def peak_entropy(peaks_NC: Tensor, bin_width: float = ENTROPY_BIN) -> Tensor:
    """Entropy of each channel's standardised peaks in a histogram: (C,) float64, in nats; low where they part in two.

    Source: Zheng et al., NeurIPS 2022, EP, whose images are clean and poisoned ones together. Here they are clean
    images and the same under a synthesised trigger.

    Args:
        peaks_NC: Per image the largest value of the channel's map before its norm.
        bin_width: Width of a bin, in standard deviations of the channel's peaks.
    """
    peaks_NC = peaks_NC.double()
    deviation_NC = peaks_NC - peaks_NC.mean(dim=0)
    spread_C = deviation_NC.square().mean(dim=0).sqrt()
    unit_NC = torch.where(spread_C > 0, deviation_NC / spread_C.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    bins_NC = (unit_NC / bin_width).floor().long().cpu()
    entropies = []
    for bins_N in bins_NC.unbind(dim=1):
        share_B = (bins_N - bins_N.min()).bincount().double() / len(bins_N)
        share_B = share_B[share_B > 0]
        entropies.append(-(share_B * share_B.log()).sum())
    return torch.stack(entropies)


def beyond_mean(score_C: Tensor, u: float) -> Tensor:
    """Where a score exceeds its layer's mean + u·std, (C,) bool: the rule of CLP and BNP.

    It cannot fire in a layer of few channels: the largest z-score of n values is (n - 1)/√n.
    """
    return score_C > score_C.mean() + u * score_C.std() if len(score_C) > 1 else torch.zeros_like(score_C).bool()


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
