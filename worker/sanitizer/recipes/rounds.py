"""The rounds of a repair: the first, one against masks that lead anywhere too, one aimed at a class that stands out.

Shapes: T triggers, N images to choose with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from worker.sanitizer.inspection import INVERSION_BATCH, Findings
from worker.sanitizer.masks import Mask
from worker.sanitizer.recipes.suspicion import Bounded, Suspicion, bounds
from worker.sanitizer.recipes.walk_back import is_finite, walk_back
from worker.sanitizer.recipes.workbench import Workbench
from worker.sanitizer.repair import Course, Snapshot, chances, snapshot, unlearn
from worker.sanitizer.spec import AccuracyBudget
from worker.sanitizer.trigger import ANYWHERE, Triggers, synthesise
from worker.sanitizer.variety import Recognised

# Gradient steps of a round for each suspected class, at least so many.
UNLEARN_STEPS = 150
LEAST_UNLEARN_STEPS = 300
# Triggers that are random or depend on the image work against a backdoor whose class is not suspected, or that no mask
# stands for. The random ones cost no accuracy on networks of the battery, so they are the heavier where nothing is
# sure, or a large mask stands for a change of the whole image. There a slower descent, softened answers and mirrored
# patchworks keep more of the accuracy; of small masks they leave more alive.
SMALL_MASKS = Course(
    anchor_weight=25.0,
    trigger_weight=6.0,
    random_weight=10.0,
    residual_weight=1.5,
    patchwork=True,
    batch_size=64,
    search_batch=INVERSION_BATCH,
)
LARGE_MASKS = dataclasses.replace(
    SMALL_MASKS,
    anchor_weight=30.0,
    random_weight=20.0,
    temperature=3.0,
    mirrored=True,
    rate_share=0.5,
    length_share=1.5,
)
# Where whole images stand for patchworks the anchor is so many times heavier, since 250 of them say less. Set by hand
# on two networks of outlined things.
WHOLE_IMAGES_ANCHOR = 4.0
# So many times heavier is that of a second attempt, where the first breaks the budget all the way back.
SECOND_ANCHOR = 4.0
# Of a search for masks on the network as it is.
FRESH_STEPS = 100
# Of a round aimed at a class that stands out: the share of the anchor's weight, and q of triggers that lead there. Set
# by hand on one network, of digits with a warp.
AIMED_ANCHOR_SHARE = 0.4
AIMED_WEIGHT = 6.0

_SECOND = (
    f" A first training broke the accuracy budget, so a second one held {SECOND_ANCHOR:g} times as hard to what the "
    "network knew."
)
_NO_SECOND = f" Two trainings broke the accuracy budget, the second though it held {SECOND_ANCHOR:g} times as hard."


def course_for(bench: Workbench, suspicion: Suspicion) -> Course:
    """How hard the network is taught: by how sure the suspicion is, and by what stands for clean images."""
    course = SMALL_MASKS if suspicion.of_small_masks else LARGE_MASKS
    return _heavier(course, WHOLE_IMAGES_ANCHOR) if isinstance(bench.vary, Recognised) else course


class First(NamedTuple):
    """What a first round came to.

    Attributes:
        share_kept: Which share of the way to the trained network keeps the budget, 0 if none.
        course: The one that later rounds go by.
        reason: What is to be said of it, or nothing.
    """

    share_kept: float
    course: Course
    reason: str = ""


def first_round(
    bench: Workbench,
    taught: Bounded,
    before: Snapshot,
    pruned: Snapshot,
    course: Course,
    mask: Mask,
    right_before_N: Tensor,
    budget: AccuracyBudget | None,
) -> First:
    """Unlearn the suspects, and once more with a heavier anchor if nothing of that keeps the budget.

    A training that diverged is not tried again. Where nothing is kept the network is as it was.
    """
    steps = max(LEAST_UNLEARN_STEPS, UNLEARN_STEPS * len({*taught.targets} - {ANYWHERE}))

    def attempt(course: Course) -> tuple[float, bool]:
        _unlearn(bench, _doubled(bench, taught), before, course, mask, steps, phase="repair")
        trained = snapshot(bench.network)
        has_converged = is_finite(bench.network.parameters())
        return walk_back(bench, pruned, trained, right_before_N, budget), has_converged

    share, has_converged = attempt(course)
    if share or not has_converged:
        return First(share, course)
    heavier = _heavier(course, SECOND_ANCHOR)
    share, _ = attempt(heavier)
    return First(share, heavier, _SECOND) if share else First(0.0, course, _NO_SECOND)


def _heavier(course: Course, times: float) -> Course:
    return dataclasses.replace(course, anchor_weight=times * course.anchor_weight)


def unlearn_again(
    bench: Workbench, findings: Findings, taught: Bounded, before: Snapshot, course: Course, mask: Mask
) -> None:
    """Unlearn the suspects, and masks that lead anywhere: the suspect's smallest, and one of the network as it is."""
    found = _invert_again(bench, [ANYWHERE]).join(findings.anywhere)
    again = _doubled(bench, taught).join(found, bounds(found))
    # The suspects' own triggers keep the weight that they had.
    own = float(chances(again.triggers)[: -len(found)].sum())
    weight = course.trigger_weight / own
    course = dataclasses.replace(course, trigger_weight=weight)
    _unlearn(bench, again, before, course, mask, LEAST_UNLEARN_STEPS, phase="repair_again")


def unlearn_aimed(
    bench: Workbench, taught: Bounded, before: Snapshot, course: Course, mask: Mask, targets: Sequence[int]
) -> None:
    """Unlearn triggers that depend on the image and lead to these classes, beside the suspects' masks."""
    anchor_weight = AIMED_ANCHOR_SHARE * course.anchor_weight
    course = dataclasses.replace(course, anchor_weight=anchor_weight, residual_weight=AIMED_WEIGHT)
    _unlearn(bench, taught, before, course, mask, LEAST_UNLEARN_STEPS, phase="repair_again", residual=targets)


def _unlearn(
    bench: Workbench,
    taught: Bounded,
    anchor: Snapshot,
    course: Course,
    mask: Mask,
    steps: int,
    *,
    phase: str,
    residual: Sequence[int] = (),
) -> None:
    """Unlearn the suspects from where the network is, and triggers that depend on the image.

    These lead to classes that were asked for, or anywhere and to the first of the suspects.
    """
    leads = residual or list(dict.fromkeys([ANYWHERE, *taught.targets]))
    steps = round(course.length_share * steps)
    with bench.phase(phase, steps) as advance:
        unlearn(
            bench.network, bench.repair, taught.triggers, taught.bounds_T, course, anchor=anchor, steps=steps,
            generator=bench.generator, mask=mask, residual_targets=leads, vary=bench.vary, advance=advance,
        )  # fmt: skip


def _doubled(bench: Workbench, taught: Bounded) -> Bounded:
    """With a second mask for each, drawn anew: the first may sit in a corner that the network soon defends."""
    return taught.join(_invert_again(bench, taught.targets), taught.bounds_T)


def _invert_again(bench: Workbench, targets: Sequence[int]) -> Triggers:
    """Masks on the network as it is."""
    with bench.phase("invert_again", FRESH_STEPS) as advance:
        return synthesise(
            bench.network, bench.repair.pixels_NCHW, bench.repair.labels, targets, family="mask", steps=FRESH_STEPS,
            batch_size=INVERSION_BATCH, generator=bench.generator, advance=advance,
        )  # fmt: skip
