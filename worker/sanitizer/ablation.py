"""Find the few channels without which a trigger leads nowhere, by what silencing each of them really does.

Shapes: N images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from worker.sanitizer import masks
from worker.sanitizer.evaluate import divergence, log_probabilities
from worker.sanitizer.masks import Ranking
from worker.sanitizer.network import Network, Site

# Another channel must lower what is left by this share of it: what gains less follows the few images that were asked.
LEAST_GAIN = 0.05


def ablate(
    network: Network,
    sites: Sequence[Site],
    pool: Ranking,
    clean_NCHW: Tensor,
    triggered_NCHW: Tensor,
    answers_NK: Tensor,
    *,
    silent: Sequence[tuple[str, int]] = (),
    most: int,
    advance: Callable[[int], None] = lambda _: None,
) -> Ranking:
    """Silence channels one by one, always that after which the network answers most as if there were no trigger.

    It is the one of the least KL(f₀(x) ‖ f(x)) + KL(f₀(x) ‖ f(t(x))), f₀ the suspect and f what is left of it: the
    trigger must stop working, and what else the channel does must not be missed. It ends where none lowers the sum by
    `LEAST_GAIN` of it. No site loses its last channel. The network is as before afterwards.

    Args:
        network: The suspect.
        sites: Those that the pool names.
        pool: The channels that may go.
        clean_NCHW: Images x.
        triggered_NCHW: The same under the trigger, t(x).
        answers_NK: Logarithms of the suspect's answers to x.
        silent: Channels that are silenced already.
        most: How many channels go at most.
        advance: Called with the number of channels done, together `most`.

    Returns:
        The channels in the order in which they go.
    """
    both_NCHW, wanted_NK = torch.cat([clean_NCHW, triggered_NCHW]), torch.cat([answers_NK, answers_NK])

    def missed(gone: Ranking) -> float:
        with masks.silenced(network, masks.from_ranking(sites, gone, len(gone))):
            # The mean over both halves is half the sum.
            left = 2 * divergence(wanted_NK, log_probabilities(network, both_NCHW))
        # By rounding it can fall below zero.
        return max(left, 0.0) if math.isfinite(left) else math.inf

    gone, size = list(silent), {site.name: site.num_channels for site in sites}
    least = missed(gone)
    for done in range(most):
        left = {channel: missed([*gone, channel]) for channel in pool if _may_go(channel, gone, size)}
        best = min(left, key=left.__getitem__, default=None)
        if best is None or left[best] >= (1 - LEAST_GAIN) * least:
            advance(most - done)
            break
        gone, least = [*gone, best], left[best]
        advance(1)
    return gone[len(silent) :]


def _may_go(channel: tuple[str, int], gone: Ranking, size: dict[str, int]) -> bool:
    """Whether it is there still, and not the last of its site."""
    return channel not in gone and sum(name == channel[0] for name, _ in gone) + 1 < size[channel[0]]
