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

    Scale and shift are those of the batch norm; without one, the convolution's weight and bias take their place.

    Args:
        network: The network, whose own tensors are left alone.
        sites: Which sites are masked.
        scale: Per site (C,), by which the norm's scale, or the weight, is multiplied.
        shift: Per site (C,), by which the norm's shift, or the bias, is multiplied; `scale` where None.
    """
    tensors: dict[str, Tensor] = {}
    for site in sites:
        for name in site.scale:
            factor = scale if shift is None or not name.endswith("bias") else shift
            value = network.tensors[name]
            tensors[name] = value * factor[site.name].view(-1, *[1] * (value.dim() - 1))
    return tensors
