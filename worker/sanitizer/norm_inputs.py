"""What reaches each batch norm: the moments and the peaks of the values before it.

Shapes: N images, C channels, P positions of a map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from worker.sanitizer.moments import Moments, update
from worker.sanitizer.network import Network, Site


def moments(
    network: Network,
    batches: Iterable[Tensor],
    sites: Sequence[Site],
    *,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, Moments]:
    """The moments of what each site's batch norm reads, in one pass over the images.

    Args:
        network: The network.
        batches: Pixels in [0, 1], (N, C, H, W) each, of any batch size.
        sites: Sites with a batch norm.
        advance: Called after each batch with its number of images.

    Returns:
        Moments by site name.
    """
    states: dict[str, Moments] = {}

    def see(site: Site, maps_NCHW: Tensor) -> None:
        states[site.name] = update(states.get(site.name), maps_NCHW)

    _show(network, batches, sites, see, advance)
    return states


def peaks(
    network: Network,
    batches: Iterable[Tensor],
    sites: Sequence[Site],
    *,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, Tensor]:
    """Per image the largest value that each site's batch norm reads, (N, C) on the CPU, by site name."""
    parts: dict[str, list[Tensor]] = {}

    def see(site: Site, maps_NCHW: Tensor) -> None:
        parts.setdefault(site.name, []).append(maps_NCHW.detach().flatten(2).amax(dim=2).cpu())

    _show(network, batches, sites, see, advance)
    return {name: torch.cat(peaks_NC) for name, peaks_NC in parts.items()}


def _show(
    network: Network,
    batches: Iterable[Tensor],
    sites: Sequence[Site],
    see: Callable[[Site, Tensor], None],
    advance: Callable[[int], None],
) -> None:
    # Two norms may read one node, as at the start of a stage.
    readers: dict[str, list[Site]] = {}
    for site in sites:
        assert site.norm_input is not None
        readers.setdefault(site.norm_input, []).append(site)

    def observer(reading: Sequence[Site]) -> Callable[[Tensor], None]:
        def show(maps_NCHW: Tensor) -> None:
            for site in reading:
                see(site, maps_NCHW)

        return show

    observers = {node: observer(reading) for node, reading in readers.items()}
    with torch.no_grad():
        for pixels_NCHW in batches:
            network.observe(pixels_NCHW.to(network.device), observers)
            advance(len(pixels_NCHW))
