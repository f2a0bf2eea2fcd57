"""Neural Cleanse: reverse-engineer a trigger per class, and unlearn the one that is too small.

Wang et al., "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks", IEEE S&P 2019.

Shapes: K classes, B images of a batch, C channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worker.sanitizer import criteria
from worker.sanitizer.recipes.workbench import Outcome, Workbench
from worker.sanitizer.report import Choice
from worker.sanitizer.training import Schedule, fine_tune
from worker.sanitizer.trigger import Triggers, synthesise

SYNTHESIS_STEPS = 300
SYNTHESIS_BATCH = 16
# Classes that are inverted side by side; more would cost memory and save no time.
CLASSES_AT_ONCE = 20
ANOMALY_INDEX = 2.0
STAMPED_FRACTION = 0.2
UNLEARNING = Schedule(epochs=20, max_steps=300)


def nc_unlearn(bench: Workbench) -> Outcome:
    """Unlearn the synthesised triggers of the suspected classes: stamped images keep their true labels.

    Suspected are the classes whose mask lies more than two robust deviations below the median of all; where there is
    none, the class with the smallest. A fifth of each batch is stamped, each image with one of the triggers.
    """
    network, generator = bench.network, bench.generator
    triggers, size_K = _invert(bench)
    suspects = suspected(size_K)

    def stamp(pixels_BCHW: Tensor) -> Tensor:
        which_B = torch.randint(len(suspects), (len(pixels_BCHW),), generator=generator)
        stamped_B = torch.rand(len(pixels_BCHW), generator=generator) < STAMPED_FRACTION
        changed_BCHW = pixels_BCHW.clone()
        for which in range(len(suspects)):
            chosen_B = (stamped_B & (which_B == which)).to(pixels_BCHW.device)
            changed_BCHW[chosen_B] = triggers[suspects[which]].stamp(pixels_BCHW[chosen_B], 0)
        return changed_BCHW

    with bench.phase("unlearn", UNLEARNING.num_steps(len(bench.repair))) as advance:
        fine_tune(network, bench.repair, UNLEARNING, generator=generator, change=stamp, advance=advance)
    named = ", ".join(str(target) for target in suspects)
    reason = (
        f"Unlearnt the smallest synthesised masks, those of class {named} (largest anomaly index "
        f"{float(anomaly_index(size_K).max()):.1f})."
    )
    return Outcome(choice=Choice(num_pruned=0, num_in_scope=0, reason=reason))


def anomaly_index(size_K: Tensor) -> Tensor:
    """How many robust deviations (1.4826 MAD) each class's mask lies below the median: (K,) float64."""
    return -criteria.standardise(size_K)


def suspected(size_K: Tensor) -> list[int]:
    """The classes of an anomaly index above two, or else the class of the smallest mask."""
    outliers: list[int] = (anomaly_index(size_K) > ANOMALY_INDEX).nonzero().flatten().tolist()
    return outliers or [int(size_K.argmin())]


def _invert(bench: Workbench) -> tuple[list[Triggers], Tensor]:
    """One trigger per class, and the ℓ1 sizes of their masks (K,)."""
    everything = range(bench.num_classes)
    classes = [everything[start : start + CLASSES_AT_ONCE] for start in range(0, len(everything), CLASSES_AT_ONCE)]
    found: list[Triggers] = []
    with bench.phase("synthesise", SYNTHESIS_STEPS * len(classes)) as advance:
        for targets in classes:
            triggers = synthesise(
                bench.network,
                bench.repair.pixels_NCHW,
                bench.repair.labels,
                targets,
                family="mask",
                steps=SYNTHESIS_STEPS,
                batch_size=SYNTHESIS_BATCH,
                generator=bench.generator,
                advance=advance,
            )
            found.extend(triggers.take([which]) for which in range(len(triggers)))
    return found, torch.cat([triggers.size() for triggers in found]).cpu()
