"""Judge a network on images: predictions, rates, and how sure a rate is.

Shapes: N images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from worker.sanitizer.activations import batched
from worker.sanitizer.network import Network
from worker.sanitizer.report import Estimate

Z_95 = 1.959963984540054
# So many standard errors beyond a bound a one-sided test at 95 % lies.
Z_95_ONE_SIDED = 1.645


def log_probabilities(network: Network, pixels_NCHW: Tensor) -> Tensor:
    """The logarithms of the network's answers, (N, K) on the CPU."""
    return _over_batches(network, pixels_NCHW, lambda logits_BK: logits_BK.log_softmax(dim=1))


def probabilities(network: Network, pixels_NCHW: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """The network's answers with these tensors in place of its own, (N, K) on the CPU."""
    return _over_batches(network, pixels_NCHW, lambda logits_BK: logits_BK.softmax(dim=1), tensors)


def predict(network: Network, pixels_NCHW: Tensor) -> Tensor:
    """The most probable class of each image, (N,) int64 on the CPU."""
    return _over_batches(network, pixels_NCHW, lambda logits_BK: logits_BK.argmax(dim=1))


def predict_closely(network: Network, pixels_NCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `predict`, whether each answer is free of NaN and infinity, and its spread, in one pass.

    The spread is how far the largest logit lies above the median one: (N,) int64, (N,) bool, (N,) float64, on the CPU.
    """

    def look(logits_BK: Tensor) -> Tensor:
        wide_BK = logits_BK.double()
        spread_B = wide_BK.amax(dim=1) - wide_BK.median(dim=1).values
        return torch.stack([wide_BK.argmax(dim=1), is_finite(logits_BK), spread_B], dim=1)

    all_N3 = _over_batches(network, pixels_NCHW, look)
    return all_N3[:, 0].long(), all_N3[:, 1].bool(), all_N3[:, 2]


def is_finite(logits_BK: Tensor) -> Tensor:
    """Which answers hold neither NaN nor infinity, (B,) bool."""
    return logits_BK.isfinite().all(dim=1)


def accuracy(network: Network, pixels_NCHW: Tensor, labels_N: Tensor) -> float:
    """Share of images predicted as their label."""
    return float((predict(network, pixels_NCHW) == labels_N).double().mean())


def divergence(before_NK: Tensor, after_NK: Tensor) -> float:
    """The mean over images of KL(before ‖ after) in nats, of logarithms of probabilities."""
    return float((before_NK.exp() * (before_NK - after_NK)).sum(dim=1).double().mean())


def recalls(predicted_N: Tensor, labels_N: Tensor, num_classes: int) -> Tensor:
    """Per class the share of its images predicted as it, (K,) float64; NaN for a class without images."""
    hits_K = torch.bincount(labels_N[predicted_N == labels_N], minlength=num_classes).double()
    return hits_K / torch.bincount(labels_N, minlength=num_classes).double()


def accuracy_drop(right_before_N: Tensor, right_after_N: Tensor) -> tuple[float, float]:
    """How much accuracy was lost on the same images, and that difference's standard error (as in McNemar's test)."""
    return mean_and_error(right_before_N.double() - right_after_N.double())


def mean_and_error(value_N: Tensor) -> tuple[float, float]:
    """The mean of independent values, and its standard error."""
    return float(value_N.mean()), float(value_N.std(correction=0)) / math.sqrt(len(value_N))


def wilson(hits: int, num_images: int) -> Estimate:
    """A proportion with its 95 % Wilson score interval (Wilson, JASA 1927).

    Raises:
        ValueError: There are no images.
    """
    if num_images <= 0:
        raise ValueError("a proportion of no images")
    share = hits / num_images
    scale = 1 + Z_95**2 / num_images
    centre = (share + Z_95**2 / (2 * num_images)) / scale
    half = Z_95 / scale * math.sqrt(share * (1 - share) / num_images + Z_95**2 / (4 * num_images**2))
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    # At 0 and 1 the interval touches the value; rounding must not let it fall just beside.
    return Estimate(value=share, low=min(low, share), high=max(high, share), num_images=num_images)


def share_of(hits_N: Tensor) -> Estimate:
    """The share of true values, with its interval."""
    return wilson(int(hits_N.sum()), len(hits_N))


def _over_batches(
    network: Network,
    pixels_NCHW: Tensor,
    of_logits: Callable[[Tensor], Tensor],
    tensors: Mapping[str, Tensor] | None = None,
) -> Tensor:
    answer = network if tensors is None else partial(network, tensors=tensors)
    with torch.no_grad():
        parts = [of_logits(answer(batch.to(network.device))).cpu() for batch in batched(pixels_NCHW)]
    return torch.cat(parts)
