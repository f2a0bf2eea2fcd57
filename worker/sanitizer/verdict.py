"""Is the network backdoored, towards which classes, and how sure are we.

Shapes: K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.sanitizer.case import Images
from worker.sanitizer.criteria import standardise
from worker.sanitizer.network import Network
from worker.sanitizer.repair import Snapshot, snapshot
from worker.sanitizer.report import ClassEvidence, Verdict
from worker.sanitizer.trigger import Triggers, success, synthesise

# Half as many left the masks of small networks so large that the target class did not stand out.
MASK_STEPS = 300
PERTURBATION_STEPS = 50
INVERSION_BATCH = 16
# Per root of the number of input values: an image of 28 x 28 gets an ℓ2 radius of 1.5.
RADIUS_PER_ROOT = 1.5 / 28
# Success rates are kept this far from 0 and 1 before their logit is taken.
LOGIT_MARGIN = 0.01
MAX_CANDIDATES = 2
# A second class is suspected beside the first from this total on, or from this share of the first one's.
SECOND_TOTAL = 2.0
SECOND_SHARE = 0.5
# With more classes than this a short search for additive perturbations picks those that are looked at closely.
MAX_CLASSES_INVERTED = 20
SCREENING_STEPS = 20
MIN_CLASSES = 3

# Set by hand on nineteen backdoored and three clean networks of the battery (Fashion-MNIST, 10 % poisoning): not yet
# calibrated on a bank, so a verdict states no false-positive rate. benchmarks/results says what was measured since.
MASK_THRESHOLD = 1.0
GROWTH_THRESHOLD = 0.5


@dataclass(frozen=True, slots=True)
class Findings:
    """What the inversions say about each class that was looked at.

    Attributes:
        classes: The classes, K' of them.
        triggers: Their mask triggers, synthesised on the suspect.
        size: ℓ1 size of each mask on the suspect, in pixels.
        referee_size: The same on the referee.
        perturbation_success: Share of images that an additive perturbation of the bounded norm sends to the class.
        radius: That bound, ℓ2.
    """

    classes: list[int]
    triggers: Triggers
    size: Tensor
    referee_size: Tensor
    perturbation_success: Tensor
    radius: float

    @property
    def anomaly(self) -> Tensor:
        """Robust deviations of the logarithm of the size below the median of all classes (Neural Cleanse's index)."""
        return -standardise(self.size.log())

    @property
    def growth(self) -> Tensor:
        """How much larger the trigger is on the referee, as a logarithm, against the median class."""
        growth = (self.referee_size / self.size).log()
        return growth - growth.quantile(0.5)

    @property
    def ease(self) -> Tensor:
        """The logit of the perturbation's success against the median class's."""
        ease = self.perturbation_success.clamp(LOGIT_MARGIN, 1 - LOGIT_MARGIN).logit()
        return ease - ease.quantile(0.5)

    @property
    def total(self) -> Tensor:
        """The sum of the three statistics above, each divided by its spread over the classes."""
        return standardise(self.anomaly) + standardise(self.growth) + standardise(self.ease)

    def candidates(self) -> list[int]:
        """Positions of at most two classes to suspect, the largest total first; the second only where it stands out."""
        total = self.total
        order: list[int] = torch.argsort(total, descending=True, stable=True).tolist()
        worth = min(SECOND_TOTAL, SECOND_SHARE * float(total[order[0]]))
        return order[:1] + [row for row in order[1:MAX_CANDIDATES] if float(total[row]) >= worth]


def inspect(
    network: Network,
    forgetful: Snapshot,
    images: Images,
    select: Images,
    num_classes: int,
    *,
    generator: torch.Generator,
    advance: Callable[[int], None] = lambda _: None,
) -> Findings:
    """Invert the suspect and the referee for every class (or the most reachable twenty); both are left unchanged."""
    pixels_NCHW, labels_N = images.pixels_NCHW, images.labels
    radius = RADIUS_PER_ROOT * math.sqrt(pixels_NCHW[0].numel())
    classes = list(range(num_classes))
    if num_classes > MAX_CLASSES_INVERTED:
        classes = _screen(network, images, select, classes, radius, generator)

    def masks_of() -> Triggers:
        return synthesise(
            network, pixels_NCHW, labels_N, classes, family="mask", steps=MASK_STEPS, batch_size=INVERSION_BATCH,
            generator=generator, advance=advance,
        )  # fmt: skip

    triggers = masks_of()
    perturbations = synthesise(
        network, pixels_NCHW, labels_N, classes, family="l2", steps=PERTURBATION_STEPS, batch_size=INVERSION_BATCH,
        radius=radius, generator=generator, advance=advance,
    )  # fmt: skip
    succeeded = success(network, perturbations, select.pixels_NCHW, select.labels)
    before = snapshot(network)
    network.load(forgetful)
    referee_size = masks_of().size().double().cpu()
    network.load(before)
    return Findings(classes, triggers, triggers.size().double().cpu(), referee_size, succeeded, radius)


def num_steps() -> int:
    """How often `inspect` calls `advance`."""
    return 2 * MASK_STEPS + PERTURBATION_STEPS


def judge(findings: Findings, num_classes: int) -> Verdict:
    """Clean, suspicious or backdoored by two unlike statistics that must agree; inconclusive below three classes.

    The first is the size of the smallest mask among the classes of this network, the second what forgetting does to
    it. `backdoored` needs one class beyond both thresholds, `suspicious` a class beyond either.
    """
    anomaly, growth = findings.anomaly, findings.growth
    evidence = [
        ClassEvidence(
            class_index=target,
            mask_size=round(float(findings.size[row]), 3),
            mask_size_after_forgetting=round(float(findings.referee_size[row]), 3),
            perturbation_success=round(float(findings.perturbation_success[row]), 4),
            anomaly_index=round(float(anomaly[row]), 4),
            growth=round(float(growth[row]), 4),
        )
        for row, target in enumerate(findings.classes)
    ]
    both = torch.minimum(anomaly / MASK_THRESHOLD, growth / GROWTH_THRESHOLD)
    score = round(float(both.amax()), 4)
    if num_classes < MIN_CLASSES:
        return Verdict(
            verdict="inconclusive", target_classes=[], score=None, evidence=evidence,
            reason="With fewer than three classes no class can stand out from the others.",
        )  # fmt: skip
    beyond_both = (both > 1).nonzero().flatten().tolist()
    beyond_one = ((anomaly > MASK_THRESHOLD) | (growth > GROWTH_THRESHOLD)).nonzero().flatten().tolist()
    if beyond_both:
        verdict, rows, reason = "backdoored", beyond_both, "Two unlike statistics agree on a class."
    elif beyond_one:
        verdict, rows, reason = "suspicious", beyond_one, "One statistic of two stands out."
    else:
        verdict, rows, reason = "clean", [], "No class stands out in either statistic."
    return Verdict(
        verdict=verdict,  # type: ignore[arg-type]
        target_classes=[findings.classes[row] for row in rows],
        score=score,
        evidence=evidence,
        reason=reason,
    )


def _screen(
    network: Network,
    images: Images,
    select: Images,
    classes: list[int],
    radius: float,
    generator: torch.Generator,
) -> list[int]:
    """The classes that a short search reaches best, in their own order."""
    shares = []
    for start in range(0, len(classes), MAX_CLASSES_INVERTED):
        found = synthesise(
            network, images.pixels_NCHW, images.labels, classes[start : start + MAX_CLASSES_INVERTED], family="l2",
            steps=SCREENING_STEPS, batch_size=INVERSION_BATCH, radius=radius, generator=generator,
        )  # fmt: skip
        shares.append(success(network, found, select.pixels_NCHW, select.labels))
    best = torch.cat(shares).argsort(descending=True, stable=True)[:MAX_CLASSES_INVERTED]
    return sorted(best.tolist())
