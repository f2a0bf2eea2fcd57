"""What synthesised triggers still do: the estimate that a report states, with its interval.

Shapes: N images, T triggers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from worker.sanitizer.case import Images
from worker.sanitizer.evaluate import wilson
from worker.sanitizer.exhibits import Suspected
from worker.sanitizer.network import Network
from worker.sanitizer.report import Estimate, SyntheticAttackSuccess
from worker.sanitizer.trigger import ANYWHERE, Triggers, success


def estimated(
    network: Network, found: Sequence[Suspected], now: Sequence[Triggers], images: Images
) -> SyntheticAttackSuccess:
    """The largest success of triggers on the suspect, and of these or others on the network as it is.

    Args:
        network: The network.
        found: Triggers of the suspect, with their success on these images.
        now: Those that are tried now.
        images: Labelled, to choose with.
    """
    was = max((one for one in found if one.success is not None), key=lambda one: one.success or 0.0)
    before = interval(was.success or 0.0, was.target, images.labels)
    after = worst(network, now, images)
    return SyntheticAttackSuccess(
        before=before.value,
        after=after.value,
        num_triggers=sum(map(len, now)),
        before_low=before.low,
        before_high=before.high,
        after_low=after.low,
        after_high=after.high,
    )


def worst(network: Network, triggers: Sequence[Triggers], images: Images) -> Estimate:
    """The largest success of any of the triggers on labelled images; one whose search diverged counts as a success."""
    shares_T = torch.cat([_shares(network, one, images) for one in triggers])
    targets_T = torch.cat([one.targets_T for one in triggers])
    row = int(shares_T.argmax())
    return interval(float(shares_T[row]), int(targets_T[row]), images.labels)


def interval(share: float, target: int, labels_N: Tensor) -> Estimate:
    """A trigger's success with Wilson's interval, over the images that are not of its target class."""
    count = len(labels_N) if target == ANYWHERE else int((labels_N != target).sum())
    return wilson(round(share * count), max(count, 1))


def _shares(network: Network, triggers: Triggers, images: Images) -> Tensor:
    shares_T = success(network, triggers, images.pixels_NCHW, images.labels)
    is_found_T = triggers.amount_T1HW.flatten(1).isfinite().all(dim=1) & triggers.pattern_TCHW.flatten(
        1
    ).isfinite().all(dim=1)
    return shares_T.masked_fill(~is_found_T.cpu(), 1.0)
