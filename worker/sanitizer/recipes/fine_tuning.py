"""Fine-tuning on clean images, plain and with adaptive sharpness-aware minimisation; nothing is pruned.

FT-SAM: Zhu et al., "Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization", ICCV 2023.
"""

from __future__ import annotations

from dataclasses import replace

from worker.sanitizer.recipes.workbench import Outcome, Workbench
from worker.sanitizer.report import Choice
from worker.sanitizer.training import Schedule, fine_tune

PLAIN = Schedule(epochs=100, max_steps=500)
# Label smoothing 0.1 and radius 2 are the paper's for CIFAR-10 and a network of 11.2 million parameters. The adaptive
# step e has ‖e / w‖ = radius over all of them, so that a small network takes the same relative step at a radius that
# shrinks with the root of its size; at 2 it is destroyed.
SHARPNESS_AWARE = Schedule(epochs=100, max_steps=300, label_smoothing=0.1)
RADIUS = 2.0
RADIUS_PARAMETERS = 11_200_000


def ft(bench: Workbench) -> Outcome:
    """Fine-tune every parameter on the repair images."""
    return _tuned(bench, PLAIN, "Fine-tuning on the repair images")


def ft_sam(bench: Workbench) -> Outcome:
    """Fine-tune every parameter for a low loss in its whole neighbourhood."""
    num_parameters = sum(parameter.numel() for parameter in bench.network.parameters().values())
    radius = RADIUS * min(1.0, (num_parameters / RADIUS_PARAMETERS) ** 0.5)
    return _tuned(
        bench, replace(SHARPNESS_AWARE, sam_radius=radius), "Sharpness-aware fine-tuning on the repair images"
    )


def _tuned(bench: Workbench, schedule: Schedule, what: str) -> Outcome:
    steps = schedule.num_steps(len(bench.repair))
    with bench.phase("fine_tune", steps) as advance:
        fine_tune(bench.network, bench.repair, schedule, generator=bench.generator, advance=advance)
    reason = f"{what}, {steps} steps, whatever it costs."
    return Outcome(choice=Choice(num_pruned=0, num_in_scope=0, reason=reason))
