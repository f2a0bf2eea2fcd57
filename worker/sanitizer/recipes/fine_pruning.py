"""Fine-Pruning: silence what sleeps on clean images, then fine-tune.

Liu, Dolan-Gavitt, Garg, "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks", RAID 2018.
"""

from __future__ import annotations

import math

from worker.sanitizer import criteria, masks
from worker.sanitizer.activations import batched, profile
from worker.sanitizer.evaluate import predict
from worker.sanitizer.recipes.thresholds import curve
from worker.sanitizer.recipes.workbench import Outcome, Workbench
from worker.sanitizer.report import Choice
from worker.sanitizer.selection import Limits
from worker.sanitizer.sweep import SweepPoint, worst_recall_drop
from worker.sanitizer.training import Schedule, fine_tune

RELATIVE_ACCURACY_DROP = 0.10
STEP_FRACTION = 0.01
FINE_TUNING = Schedule(epochs=100, max_steps=600)


def fine_pruning(bench: Workbench) -> Outcome:
    """Prune the last convolution by mean activation, lowest first, and fine-tune with the pruned channels silent.

    Pruning goes on in steps of 1 % of the channels and stops before the accuracy on the selection split has fallen by
    10 % of itself. The paper measures that on test images.
    """
    network, select = bench.network, bench.select
    site = network.last_conv()
    with bench.phase("profile", len(bench.repair)) as advance:
        clean = profile(network, batched(bench.repair.pixels_NCHW), [site], advance=advance)
    scores = criteria.mean_activation(clean)
    ranking = masks.rank(scores, descending=False)
    step = max(1, math.ceil(STEP_FRACTION * site.num_channels))
    first_N = predict(network, select.pixels_NCHW)
    points = [SweepPoint(0, float((first_N == select.labels).double().mean()))]
    with bench.phase("prune", len(ranking)) as advance:
        while (count := min(points[-1].count + step, len(ranking))) > points[-1].count:
            with masks.silenced(network, masks.from_ranking([site], ranking, count)):
                predicted_N = predict(network, select.pixels_NCHW)
            seen = float((predicted_N == select.labels).double().mean())
            drop = worst_recall_drop(first_N, predicted_N, select.labels)
            points.append(SweepPoint(count, seen, recall_drop=drop))
            advance(step)
            if seen <= points[0].accuracy * (1 - RELATIVE_ACCURACY_DROP):
                break
    limits = Limits(accuracy_drop=points[0].accuracy * RELATIVE_ACCURACY_DROP)
    floor = points[0].accuracy * (1 - RELATIVE_ACCURACY_DROP)
    chosen = max(
        (point for point in points if point.accuracy > floor), key=lambda point: point.count, default=points[0]
    )
    mask = masks.from_ranking([site], ranking, chosen.count)
    masks.silence(network, mask)
    with bench.phase("fine_tune", FINE_TUNING.num_steps(len(bench.repair))) as advance:
        fine_tune(network, bench.repair, FINE_TUNING, generator=bench.generator, mask=mask, advance=advance)
    return Outcome(
        choice=Choice(
            num_pruned=chosen.count,
            num_in_scope=site.num_channels,
            reason=f"The channels of the last convolution with the lowest mean activation, as many as leave more than "
            f"{1 - RELATIVE_ACCURACY_DROP:.0%} of the accuracy on the selection split, then fine-tuning.",
        ),
        mask=mask,
        scores=scores,
        curve=curve(points, site.num_channels, len(select), limits),
    )
