"""How suspicious each channel is, by each criterion's name: large is suspicious, whatever the criterion's paper prunes.

Shapes: N images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from worker.sanitizer import criteria
from worker.sanitizer.activations import ChannelStatistics, batched
from worker.sanitizer.contribution import logit_contribution
from worker.sanitizer.criteria import Scores
from worker.sanitizer.errors import SanitizerError
from worker.sanitizer.evaluate import predict
from worker.sanitizer.network import Site
from worker.sanitizer.norm_inputs import peaks
from worker.sanitizer.recipes.anp import adversarial_masks
from worker.sanitizer.recipes.awm import weight_masks
from worker.sanitizer.recipes.layer_outliers import lipschitz_bounds, norm_divergences
from worker.sanitizer.recipes.rnp import recovery_masks
from worker.sanitizer.recipes.workbench import Workbench
from worker.sanitizer.spec import NORM_CRITERIA
from worker.sanitizer.trigger import ANYWHERE


class CriterionNotApplicableError(SanitizerError):
    """No layer in scope has what the criterion looks at."""

    code = "criterion_not_applicable"


@dataclass(frozen=True, slots=True)
class Shown:
    """Images under one trigger.

    Attributes:
        pixels_NCHW: The images.
        labels_N: Their true labels, None where the client sent none.
        target: Where the trigger leads, `ANYWHERE` included; None for a client's samples.
    """

    pixels_NCHW: Tensor
    labels_N: Tensor | None
    target: int | None


class Scored(NamedTuple):
    """The scores that rank channels, and of several criteria each one's by its name."""

    scores: Scores
    by_criterion: dict[str, Scores]


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What criteria look at: the workbench, the sites in scope, statistics of the norms, and images under triggers."""

    bench: Workbench
    sites: Sequence[Site]
    clean: dict[str, ChannelStatistics]
    triggered: dict[str, ChannelStatistics]
    shown: Sequence[Shown]


def channel_scores(material: Material) -> Scored:
    """The score that ranks channels, per site in scope that has one: (C,) float64 on the CPU.

    Each criterion of the specification is standardised inside the layer; of several the mean is taken, over those that
    apply to the layer, and standardised again.

    Raises:
        CriterionNotApplicableError: A criterion applies to no layer in scope.
    """
    parts: dict[str, Scores] = {
        name: {site: criteria.standardise(score_C).cpu() for site, score_C in raw_scores(material, name).items()}
        for name in material.bench.spec.criteria
    }
    scores = {}
    for site in material.sites:
        several = [part[site.name] for part in parts.values() if site.name in part]
        if several:
            # A mean of standardised scores has a spread of its own: what counts deviations must see the same scale.
            scores[site.name] = (
                several[0] if len(several) == 1 else criteria.standardise(torch.stack(several).mean(dim=0))
            )
    return Scored(scores, parts if len(parts) > 1 else {})


def raw_scores(material: Material, name: str) -> Scores:
    """One criterion in its own units, turned so that large is suspicious, per site in scope that it applies to.

    Raises:
        CriterionNotApplicableError: It applies to none.
    """
    if name in NORM_CRITERIA:
        return _norm(material, name)
    sites, made = material.sites, _OTHERS[name]
    if name in {"bn_divergence", "entropy"}:
        sites = [site for site in sites if site.norm is not None]
        if not sites:
            raise CriterionNotApplicableError(
                f"Criterion `{name}` looks at what a batch norm reads, and no layer in scope has one. Use another "
                "criterion."
            )
    if name in {"lipschitz", "weight_mask"}:
        sites = [site for site in sites if site.weight is not None]
        if not sites:
            raise CriterionNotApplicableError(
                f"Criterion `{name}` needs a convolution with stored weights, and none is in scope. Use another "
                "criterion."
            )
    return made(material, sites)


def _norm(material: Material, name: str) -> Scores:
    spec = material.bench.spec
    inputs = {"synthetic": "triggered", "synthetic_difference": "difference"}.get(spec.inputs, spec.inputs)
    if not material.triggered:  # Nothing was suspected: the clean norms are what there is.
        inputs = "clean"
    found = criteria.activation_scores(
        material.clean, material.triggered or None, criterion=name, aggregate=spec.aggregate, inputs=inputs
    )
    return {site.name: found[site.name] for site in material.sites}


def _mean(material: Material, sites: Sequence[Site]) -> Scores:
    """Fine-Pruning takes what sleeps on clean images first."""
    found = criteria.mean_activation(material.clean)
    return {site.name: -found[site.name] for site in sites}


def _lipschitz(material: Material, sites: Sequence[Site]) -> Scores:
    return lipschitz_bounds(material.bench.network, sites)


def _divergence(material: Material, sites: Sequence[Site]) -> Scores:
    return norm_divergences(material.bench, sites)


def _entropy(material: Material, sites: Sequence[Site]) -> Scores:
    """EP's poisoned images are here those under the triggers."""
    bench = material.bench
    images = [bench.repair.pixels_NCHW, *(one.pixels_NCHW for one in material.shown)]
    with bench.phase("entropy", sum(map(len, images))) as advance:
        batches = chain.from_iterable(batched(pixels_NCHW) for pixels_NCHW in images)
        found = peaks(bench.network, batches, sites, advance=advance)
    return {name: -criteria.peak_entropy(peaks_NC) for name, peaks_NC in found.items()}


def _adversarial_mask(material: Material, sites: Sequence[Site]) -> Scores:
    found = adversarial_masks(material.bench)
    return {site.name: -found[site.name] for site in sites}


def _unlearn_recover(material: Material, sites: Sequence[Site]) -> Scores:
    found = recovery_masks(material.bench)
    return {site.name: -found[site.name] for site in sites}


def _weight_mask(material: Material, sites: Sequence[Site]) -> Scores:
    """The mean of the soft mask over the channel's weights: AWM itself makes no channel's mask."""
    found = weight_masks(material.bench)
    named = {site.name: found[site.weight] for site in sites if site.weight in found}
    return {name: -mask_CIHW.double().flatten(1).mean(dim=1) for name, mask_CIHW in named.items()}


def _contribution(material: Material, sites: Sequence[Site]) -> Scores:
    """The mean over the triggers, each on the images that are not of its own class."""
    bench, parts = material.bench, []
    with bench.phase("contribution", len(material.shown)) as advance:
        for one in material.shown:
            target = one.target
            if target is None:
                target = int(torch.mode(predict(bench.network, one.pixels_NCHW)).values)
            pixels_NCHW = one.pixels_NCHW
            if one.labels_N is not None and bool((one.labels_N != target).any()):
                pixels_NCHW = pixels_NCHW[(one.labels_N != target).to(pixels_NCHW.device)]
            class_index = None if target == ANYWHERE else target
            parts.append(logit_contribution(bench.network, sites, pixels_NCHW, class_index))
            advance(1)
    return {site.name: torch.stack([part[site.name] for part in parts]).mean(dim=0) for site in sites}


_OTHERS: dict[str, Callable[[Material, Sequence[Site]], Scores]] = {
    "mean": _mean,
    "lipschitz": _lipschitz,
    "bn_divergence": _divergence,
    "entropy": _entropy,
    "adversarial_mask": _adversarial_mask,
    "weight_mask": _weight_mask,
    "unlearn_recover": _unlearn_recover,
    "logit_contribution": _contribution,
}
