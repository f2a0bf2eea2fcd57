"""Neural Cleanse: reverse-engineer a trigger per class, and unlearn the one that is too small.

Wang et al., "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks", IEEE S&P 2019.

Shapes: K classes that were inverted, B images of a batch, C channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worker.sanitizer import criteria
from worker.sanitizer.recipes.inversion import invert_classes
from worker.sanitizer.recipes.workbench import Outcome, Workbench
from worker.sanitizer.report import Choice
from worker.sanitizer.training import Schedule, fine_tune

ANOMALY_INDEX = 2.0
STAMPED_FRACTION = 0.2
UNLEARNING = Schedule(epochs=20, max_steps=300)


def nc_unlearn(bench: Workbench) -> Outcome:
    """Unlearn the synthesised triggers of the suspected classes: stamped images keep their true labels.

    Suspected are the classes whose mask lies more than two robust deviations below the median of all; where there is
    none, the class with the smallest. A fifth of each batch is stamped, each image with one of the triggers.
    """
    network, generator = bench.network, bench.generator
    found = invert_classes(bench)
    size_K = found[0].triggers.size().cpu()
    suspects = [found[row] for row in suspected(size_K)]

    def stamp(pixels_BCHW: Tensor) -> Tensor:
        which_B = torch.randint(len(suspects), (len(pixels_BCHW),), generator=generator)
        stamped_B = torch.rand(len(pixels_BCHW), generator=generator) < STAMPED_FRACTION
        changed_BCHW = pixels_BCHW.clone()
        for which, one in enumerate(suspects):
            chosen_B = (stamped_B & (which_B == which)).to(pixels_BCHW.device)
            changed_BCHW[chosen_B] = one.triggers.stamp(pixels_BCHW[chosen_B], one.which)
        return changed_BCHW

    with bench.phase("unlearn", UNLEARNING.num_steps(len(bench.repair))) as advance:
        fine_tune(network, bench.repair, UNLEARNING, generator=generator, change=stamp, advance=advance)
    named = ", ".join(str(one.target) for one in suspects)
    reason = (
        f"Unlearnt the smallest synthesised masks, those of class {named} (largest anomaly index "
        f"{float(anomaly_index(size_K).max()):.1f})."
    )
    return Outcome(choice=Choice(num_pruned=0, num_in_scope=0, reason=reason), triggers=suspects)


def anomaly_index(size_K: Tensor) -> Tensor:
    """How many robust deviations (1.4826 MAD) each class's mask lies below the median: (K,) float64."""
    return -criteria.standardise(size_K)


def suspected(size_K: Tensor) -> list[int]:
    """The rows of an anomaly index above two, or else that of the smallest mask."""
    outliers: list[int] = (anomaly_index(size_K) > ANOMALY_INDEX).nonzero().flatten().tolist()
    return outliers or [int(size_K.argmin())]
