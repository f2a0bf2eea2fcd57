"""Keep as much of a repair as the accuracy budget allows."""

from __future__ import annotations

import torch

from worker.sanitizer.evaluate import Z_95_ONE_SIDED, accuracy_drop, predict
from worker.sanitizer.recipes.workbench import Workbench
from worker.sanitizer.repair import Snapshot, interpolate
from worker.sanitizer.selection import TOLERANCE
from worker.sanitizer.spec import AccuracyBudget

# Shares of the way from the suspect to the repaired network that are tried, until the budget holds.
WALK_BACK = (1.0, 0.85, 0.7, 0.55, 0.4)


def walk_back(
    bench: Workbench, start: Snapshot, repaired: Snapshot, right_before_N: torch.Tensor, budget: AccuracyBudget | None
) -> float:
    """Go back towards the suspect until the accuracy is admissible; pruned channels are silent all the way.

    A training that diverged is all taken back.
    """
    network = bench.network
    trained = {name: repaired[name] for name in network.parameters()}
    for share in WALK_BACK if is_finite(trained) else ():
        interpolate(network, start, repaired, share)
        if within_budget(bench, right_before_N, budget):
            return share
    network.load(start)
    return 0.0


def is_finite(tensors: Snapshot) -> bool:
    """Whether a training did not diverge."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors.values() if tensor.is_floating_point())


def within_budget(bench: Workbench, right_before_N: torch.Tensor, budget: AccuracyBudget | None) -> bool:
    """Whether the network as it is keeps the budget, if there is one."""
    return budget is None or admissible(budget, right_before_N, right(bench), bench.select.labels)


def admissible(
    budget: AccuracyBudget, right_before_N: torch.Tensor, right_after_N: torch.Tensor, labels_N: torch.Tensor
) -> bool:
    """Whether what was lost, of the whole and of each class, is not beyond its bound by more than chance explains.

    A hundred images to choose with often lose four points where ten thousand lose one, and walking back wakes the
    backdoor.
    """

    def within(which_N: torch.Tensor, bound: float, least_error: float = 0.0) -> bool:
        drop, error = accuracy_drop(right_before_N[which_N], right_after_N[which_N])
        return drop - Z_95_ONE_SIDED * max(error, least_error) <= bound + TOLERANCE

    bound, counts_K = budget.max_recall_drop, torch.bincount(labels_N)
    # A handful of images that all flip would have no error at all, a single one always.
    return within(torch.ones_like(right_before_N), budget.max_accuracy_drop) and (
        bound is None
        or all(within(labels_N == label, bound, 1 / int(counts_K[label])) for label in torch.unique(labels_N))
    )


def right(bench: Workbench) -> torch.Tensor:
    """Which of the images to choose with the network classifies as their label, (N,) bool."""
    return predict(bench.network, bench.select.pixels_NCHW) == bench.select.labels
