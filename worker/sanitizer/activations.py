"""Streaming statistics of activation maps: one pass, memory independent of the number of images.

Shapes: N images, C channels, P positions of a map. Norms are those of |A| over the positions of one image's map, then
over images; moments are those of A over both. Sums are kept in float64 so that the batch size does not show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from worker.sanitizer.errors import SanitizerError
from worker.sanitizer.moments import Moments
from worker.sanitizer.moments import update as summed
from worker.sanitizer.network import Network, Site

NORMS = ("linf", "l1", "l2", "mean", "linf_over_l1", "linf_over_l2", "l2_over_l1")
DEFAULT_BATCH = 128
State = TypeVar("State")


class NonFiniteActivationsError(SanitizerError):
    """Some of what happens inside the network is no number, so that no channel could be scored."""

    code = "non_finite_activations"


@dataclass(frozen=True, slots=True)
class ChannelStatistics:
    """What was seen of one site's channels.

    Attributes:
        num_images: N.
        total: Per norm, the sum over images of the per-image value, (C,) float64.
        largest: Per norm, the largest per-image value, (C,) float64.
    """

    num_images: int
    total: dict[str, Tensor]
    largest: dict[str, Tensor]

    def mean(self, norm: str) -> Tensor:
        """Mean over images of a norm, (C,) float64."""
        return self.total[norm] / self.num_images

    def value(self, norm: str, aggregate: str) -> Tensor:
        """Mean (`mean`) or maximum (`max`) over images of a norm, (C,) float64."""
        return self.mean(norm) if aggregate == "mean" else self.largest[norm]


def image_norms(maps_NCHW: Tensor) -> dict[str, Tensor]:
    """Per image and channel: ℓ∞, ℓ1, ℓ2 of the map, its mean, and the ratios of the norms (0 for a silent map).

    Args:
        maps_NCHW: Activation maps; where a network has tokens instead of a map of pixels, those are the positions.

    Returns:
        Each norm's values, (N, C) float64, over the P = H*W positions. Source: arXiv 2002.12162, which compares
        the ℓ∞ norm of the activation map with ℓ1 and ℓ2.
    """
    flat_NCP = maps_NCHW.detach().flatten(2).double()
    size_NCP = flat_NCP.abs()
    linf_NC = size_NCP.amax(dim=2)
    l1_NC = size_NCP.sum(dim=2)
    l2_NC = flat_NCP.square().sum(dim=2).sqrt()
    return {
        "linf": linf_NC,
        "l1": l1_NC,
        "l2": l2_NC,
        "mean": flat_NCP.mean(dim=2),
        "linf_over_l1": _ratio(linf_NC, l1_NC),
        "linf_over_l2": _ratio(linf_NC, l2_NC),
        "l2_over_l1": _ratio(l2_NC, l1_NC),
    }


def update(state: ChannelStatistics | None, maps_NCHW: Tensor) -> ChannelStatistics:
    """The statistics after one more batch of activation maps."""
    norms = image_norms(maps_NCHW)
    total = {name: value_NC.sum(dim=0) for name, value_NC in norms.items()}
    largest = {name: value_NC.amax(dim=0) for name, value_NC in norms.items()}
    if state is None:
        return ChannelStatistics(maps_NCHW.shape[0], total, largest)
    return ChannelStatistics(
        state.num_images + maps_NCHW.shape[0],
        {name: state.total[name] + total[name] for name in NORMS},
        {name: torch.maximum(state.largest[name], largest[name]) for name in NORMS},
    )


def profile(
    network: Network,
    batches: Iterable[Tensor],
    sites: Sequence[Site],
    *,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, ChannelStatistics]:
    """Stream images through the network once and keep running statistics of every site's activation map.

    Args:
        network: The network.
        batches: Pixels in [0, 1], (N, C, H, W) each, of any batch size.
        sites: Which sites to look at.
        advance: Called after each batch with its number of images.

    Returns:
        Statistics by site name.

    Raises:
        NonFiniteActivationsError: An activation is NaN or infinite, though the network may answer in numbers.
    """
    states = _streamed(network, batches, sites, update, advance)
    for name, state in states.items():
        if not all(bool(total_C.isfinite().all()) for total_C in state.total.values()):
            raise NonFiniteActivationsError(
                f"activations of layer {name!r} are not finite numbers; look for weights so large that they overflow"
            )
    return states


def moments(network: Network, batches: Iterable[Tensor], sites: Sequence[Site]) -> dict[str, Moments]:
    """Mean and variance of each channel's activations over images and positions, by site name.

    Args:
        network: The network.
        batches: Pixels in [0, 1], (N, C, H, W) each, of any batch size.
        sites: Which sites to look at.
    """
    return _streamed(network, batches, sites, summed, lambda _: None)


def _streamed(
    network: Network,
    batches: Iterable[Tensor],
    sites: Sequence[Site],
    updated: Callable[[State | None, Tensor], State],
    advance: Callable[[int], None],
) -> dict[str, State]:
    states: dict[str, State] = {}

    def observer(site: Site) -> Callable[[Tensor], None]:
        def see(value: Tensor) -> None:
            states[site.name] = updated(states.get(site.name), site.maps(value))

        return see

    observers = {site.tap: observer(site) for site in sites}
    with torch.no_grad():
        for pixels_NCHW in batches:
            network.observe(pixels_NCHW.to(network.device), observers)
            advance(len(pixels_NCHW))
    return states


def batched(pixels_NCHW: Tensor, batch_size: int = DEFAULT_BATCH) -> Iterator[Tensor]:
    """Consecutive batches, the last one shorter where it must be: no image is dropped."""
    for start in range(0, len(pixels_NCHW), batch_size):
        yield pixels_NCHW[start : start + batch_size]


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator > 0, numerator / denominator.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
