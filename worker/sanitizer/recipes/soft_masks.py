"""Soft masks: the network with each channel multiplied by a number that descent may learn.

Shapes: C channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from worker.sanitizer.network import Network, Site


def ones(network: Network, sites: Iterable[Site]) -> dict[str, Tensor]:
    """Masks that change nothing and ask for a gradient: per site (C,) ones."""
    return {site.name: torch.ones(site.num_channels, device=network.device, requires_grad=True) for site in sites}


def masked(
    network: Network,
    sites: Iterable[Site],
    scale: Mapping[str, Tensor],
    shift: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The tensors to run the network with, for `network(pixels, tensors)`.

    Scale and shift are those of the norm; without one, the layer's weight and bias take their place.

    Args:
        network: The network, whose own tensors are left alone.
        sites: Which sites are masked.
        scale: Per site (C,), by which the norm's scale, or the weight, is multiplied.
        shift: Per site (C,), by which the norm's shift, or the bias, is multiplied; `scale` where None.
    """
    tensors: dict[str, Tensor] = {}
    for site in sites:
        for rows in site.scale:
            factor = scale if shift is None or not rows.tensor.endswith("bias") else shift
            value = network.tensors[rows.tensor]
            tensors[rows.tensor] = value * rows.factor(factor[site.name], value)
    return tensors
