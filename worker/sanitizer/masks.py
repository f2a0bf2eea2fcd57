"""Silence channels: which ones, for a moment or for good.

Shapes: C channels; keep_C is bool, False where the channel is silenced.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from worker.sanitizer.network import Network, Site

Mask = dict[str, Tensor]
Ranking = list[tuple[str, int]]


def rank(scores: Mapping[str, Tensor], *, descending: bool = True) -> Ranking:
    """All (site, channel) pairs, most suspicious first; ties go to the earlier site and channel.

    In every site the last channel in the order is left out, so that no mask of the ranking silences a whole layer.
    """
    pairs: list[tuple[float, int, str, int]] = []
    for position, (name, score_C) in enumerate(scores.items()):
        signed_C = -score_C if descending else score_C
        order = torch.argsort(signed_C, stable=True).tolist()
        pairs.extend((float(signed_C[channel]), position, name, channel) for channel in order[:-1])
    return [(name, channel) for _, _, name, channel in sorted(pairs, key=lambda pair: pair[:2] + pair[3:])]


def from_ranking(sites: Sequence[Site], ranking: Ranking, count: int) -> Mask:
    """The mask that silences the first `count` pairs of a ranking."""
    mask = {site.name: torch.ones(site.num_channels, dtype=torch.bool) for site in sites}
    for name, channel in ranking[:count]:
        mask[name][channel] = False
    return mask


def num_pruned(mask: Mapping[str, Tensor]) -> int:
    """How many channels the mask silences."""
    return sum(int((~keep_C).sum()) for keep_C in mask.values())


def silence(network: Network, mask: Mapping[str, Tensor]) -> None:
    """Write zeros into every tensor slice that a silenced channel owns."""
    with torch.no_grad():
        for tensor, index in _slices(network, mask):
            tensor[index] = 0


@contextmanager
def silenced(network: Network, mask: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block the channels are silent, exactly as `silence` would leave them; afterwards bits are restored."""
    saved = [(tensor, index, tensor[index].detach().clone()) for tensor, index in _slices(network, mask)]
    silence(network, mask)
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, index, values in saved:
                tensor[index] = values


def _slices(network: Network, mask: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, tuple[slice | Tensor, ...]]]:
    for site in network.sites:
        keep_C = mask.get(site.name)
        if keep_C is None or bool(keep_C.all()):
            continue
        index = (~keep_C).nonzero().squeeze(1).to(network.device)
        for rows in site.owned:
            yield network.tensors[rows.tensor], rows.index(index)
