"""A mask for every class as Neural Cleanse searches for it: whom `prune`, `paper` and `nc_unlearn` suspect by.

Wang et al., "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks", IEEE S&P 2019.
"""

from __future__ import annotations

from worker.sanitizer.exhibits import Suspected
from worker.sanitizer.inspection import most_reachable
from worker.sanitizer.recipes.workbench import Workbench
from worker.sanitizer.trigger import success, synthesise

SYNTHESIS_STEPS = 300
SYNTHESIS_BATCH = 16


def invert_classes(bench: Workbench) -> list[Suspected]:
    """A mask trigger for every class in turn, or for the most reachable twenty of more, with its success now."""
    network, images, select = bench.network, bench.repair, bench.select
    classes = most_reachable(network, images, select, bench.num_classes, generator=bench.generator)
    with bench.phase("synthesise", SYNTHESIS_STEPS) as advance:
        triggers = synthesise(
            network, images.pixels_NCHW, images.labels, classes, family="mask", steps=SYNTHESIS_STEPS,
            batch_size=SYNTHESIS_BATCH, generator=bench.generator, advance=advance,
        )  # fmt: skip
    shares = success(network, triggers, select.pixels_NCHW, select.labels).tolist()
    return [Suspected(triggers=triggers, which=row, success=share) for row, share in enumerate(shares)]
