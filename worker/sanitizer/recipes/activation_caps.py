"""Bound every channel's activation by what is usual on clean images: a loud trigger then adds little to any of them.

After UNIT (Cheng et al., "UNIT: Backdoor Mitigation via Automated Neural Distribution Tightening", ECCV 2024), which
learns the bounds. Here they are mean + k · std of each channel over clean images and positions, with one k for all.

Shapes: C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from worker.sanitizer.activations import batched, moments
from worker.sanitizer.case import Images
from worker.sanitizer.exhibits import Suspected
from worker.sanitizer.moments import Moments
from worker.sanitizer.network import Network, Site
from worker.sanitizer.recipes.layer_outliers import RecipeNotApplicableError
from worker.sanitizer.recipes.thresholds import at_most, limits_of
from worker.sanitizer.recipes.workbench import Outcome, Workbench
from worker.sanitizer.repair import Snapshot, snapshot
from worker.sanitizer.report import CapPoint, Caps, Choice
from worker.sanitizer.selection import Limits
from worker.sanitizer.sweep import Answers, answers, compared
from worker.sanitizer.trigger import success

# The k that are tried, the loosest first.
DEVIATIONS = (8.0, 6.0, 5.0, 4.5, 4.0, 3.5, 3.25, 3.0, 2.75, 2.5, 2.25, 2.0)
# Those behind a repair, the tightest first, and the share of the accuracy budget that they may cost: it leaves a
# network that bears tighter bounds than the suspect. Set by hand on networks of the battery, some with loud triggers.
DEVIATIONS_REPAIRED = (3.0, 3.5, 4.0, 5.0)
REPAIRED_SHARE = 0.5
# Of one suspect's trigger that works at all no more than this share of its success may be left, or the bounds are
# lifted: they cost accuracy, and a faint change of the whole image does not need any channel to be loud.
MAX_SHARE_LEFT = 0.5
WORKS_AT = 0.1


def caps(bench: Workbench) -> Outcome:
    """Bound activations as tightly as the accuracy budget allows, and nothing else.

    Raises:
        RecipeNotApplicableError: The file cannot carry the bounds.
    """
    if not carriers(bench.network):
        raise RecipeNotApplicableError(
            "Activation caps are operators of the network, which a file of weights alone cannot carry, nor one whose "
            "activations are not in float32. Upload an exported program (.pt2) or ONNX, or choose another recipe."
        )
    images = judging(bench)
    added = add_caps(bench, images, answers_to(bench.network, images))
    return Outcome(choice=Choice(num_pruned=0, num_in_scope=0, reason=added.reason), caps=added)


def cap_pruned(bench: Workbench, outcome: Outcome, before: Snapshot) -> Outcome:
    """Bound the activations of a pruned network, or of the suspect itself where that leaves no more of the triggers.

    Bounds and pruning share one budget, so that a pruning which did little can stand in their way.

    Args:
        bench: The workbench; its network is pruned.
        outcome: Of the pruning, with the suspects' triggers.
        before: The suspect's tensors.
    """
    network, images = bench.network, judging(bench)
    pruned = snapshot(network)
    network.load(before)
    first = answers_to(network, images)
    alone = add_caps(bench, images, first, outcome.triggers)
    left_alone, bounds = _successes(bench, outcome.triggers), network.bounds.copies()
    network.bounds.lift()
    network.load(pruned)
    beside = add_caps(bench, images, first, outcome.triggers)
    if alone.status == "not_added" or sum(_successes(bench, outcome.triggers)) < sum(left_alone):
        return replace(outcome, caps=beside)
    network.load({**before, **bounds})
    reason = "Nothing was pruned: bounds of activations alone leave no more of the suspects' triggers."
    return replace(outcome, caps=alone, mask={}, choice=replace(outcome.choice, num_pruned=0, reason=reason))


def cap_repaired(bench: Workbench, is_admissible: Callable[[], bool]) -> Caps:
    """Bound the activations of a network that was trained: a loud trigger that no search has found stops too.

    All images that are not held out judge what the bounds cost, those that were trained on too: the same images are
    asked before and after.

    Args:
        bench: The workbench; its network is as the training left it, and stays so where no bound is admissible.
        is_admissible: Whether the network as it is keeps the budget, by the images that nothing was trained on.
    """
    network, sites = bench.network, carriers(bench.network)
    images, limits = judging(bench), limits_of(bench.spec)
    limits = replace(limits, accuracy_drop=REPAIRED_SHARE * limits.accuracy_drop)
    first, tried = answers_to(network, images), []
    with bench.phase("cap", len(DEVIATIONS_REPAIRED)) as advance:
        found = moments(network, batched(images.pixels_NCHW), sites)
        for deviations in DEVIATIONS_REPAIRED:
            network.cap(_bounds(found, deviations))
            point = _point(network, images, first, limits, deviations)
            tried.append(replace(point, admissible=point.admissible and is_admissible()))
            advance(1)
            if tried[-1].admissible:
                reason = (
                    f"A repair can miss a trigger that was not synthesised. {_tightest(network, sites, deviations)} "
                    f"{at_most(limits)} beside the repair, on {len(images)} images that were not held out."
                )
                return Caps(status="added", reason=reason, deviations=deviations, curve=tried)
    network.bounds.lift()
    reason = f"No bound of activations {at_most(limits)} beside the repair, and keeps the budget."
    return Caps(status="not_added", reason=reason, curve=tried)


def judging(bench: Workbench) -> Images:
    """The images that judge bounds: all that are not held out."""
    return bench.repair.join(bench.select)


def answers_to(network: Network, images: Images) -> Answers:
    """What the network as it is answers to labelled images."""
    return answers(network, images.pixels_NCHW, images.labels)


def carriers(network: Network) -> list[Site]:
    """The sites whose activations a bound can be added for in the file."""
    names = network.value_names()
    return [site for site in network.sites if site.name in names]


def add_caps(bench: Workbench, images: Images, first: Answers, triggers: Sequence[Suspected] = ()) -> Caps:
    """Bound the activations of the network as it is; it is as before where no bounds are worth their price.

    All images that are not held out judge, by counts: bounded activations make every answer less sure, right or wrong.
    The bounds come from the same images, and the last point that keeps the budget is taken, without an error added: the
    true loss can lie above it, and what the report says of held-out images is the figure to go by.

    Args:
        bench: The workbench.
        images: Those that judge.
        first: What the suspect answers to them.
        triggers: Of the suspects. One of them that works must lose half of its success, if there are any.
    """
    network, sites = bench.network, carriers(bench.network)
    limits = limits_of(bench.spec)
    seen = f"on {len(images)} images that were not held out"
    before = _successes(bench, triggers)
    with bench.phase("cap", len(DEVIATIONS)) as advance:
        found = moments(network, batched(images.pixels_NCHW), sites)
        tried = []
        for deviations in DEVIATIONS:
            network.cap(_bounds(found, deviations))
            tried.append(_point(network, images, first, limits, deviations))
            advance(1)
            if not tried[-1].admissible:
                break
    admissible = [point for point in tried if point.admissible]
    if not admissible:
        network.bounds.lift()
        return Caps(status="not_added", reason=f"No bound of activations {at_most(limits)} {seen}.", curve=tried)
    chosen = admissible[-1]
    network.cap(_bounds(found, chosen.deviations))
    left = _successes(bench, triggers)
    if triggers and not any(
        was > WORKS_AT and now <= MAX_SHARE_LEFT * was for now, was in zip(left, before, strict=True)
    ):
        network.bounds.lift()
        reason = "Bounds of activations were lifted again: no suspect's trigger that works lost half of its success."
        return Caps(status="not_added", reason=reason, curve=tried)
    said = _tightest(network, sites, chosen.deviations)
    reason = f"{said} {at_most(limits)} {seen} ({chosen.accuracy:.1%} after)."
    return Caps(status="added", reason=reason, deviations=chosen.deviations, curve=tried)


def _tightest(network: Network, sites: Sequence[Site], deviations: float) -> str:
    return (
        f"Each channel of {len(sites)} of {len(network.sites)} layers is bounded by its mean plus {deviations:g} "
        "standard deviations, the tightest bound tried that"
    )


def _bounds(found: Mapping[str, Moments], deviations: float) -> dict[str, Tensor]:
    return {name: one.mean() + deviations * one.variance().sqrt() for name, one in found.items()}


def _point(network: Network, images: Images, first: Answers, limits: Limits, deviations: float) -> CapPoint:
    point = compared(0, first, answers_to(network, images), images.labels)
    accuracy_before = float((first.predicted_N == images.labels).double().mean())
    return CapPoint(
        deviations=deviations,
        accuracy=point.accuracy,
        worst_recall_drop=point.recall_drop,
        admissible=limits.admit(point, accuracy_before),
    )


def _successes(bench: Workbench, triggers: Sequence[Suspected]) -> list[float]:
    """The share of the selection images that each trigger sends to its class."""
    select = bench.select
    return [float(success(bench.network, one.trigger, select.pixels_NCHW, select.labels)) for one in triggers]
