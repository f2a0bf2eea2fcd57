"""Is the network backdoored, towards which classes, and how sure are we.

Shapes: T candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from worker.sanitizer.inspection import Findings
from worker.sanitizer.reference_bank import false_positive_rate
from worker.sanitizer.report import ClassEvidence, Verdict
from worker.sanitizer.trigger import ANYWHERE, Triggers

MIN_CLASSES = 3
SMALLEST_COST = 1e-6
# Stands for the cost of a trial that diverged.
LARGEST_COST = 1e3
# Set by hand on networks of the battery (Fashion-MNIST, 10 % poisoning), 24 backdoored and 22 clean. The rate of false
# alarms that a verdict states is not theirs: it comes from a bank of clean networks (benchmarks/results/bank.md).
BACKDOORED_STRENGTH = 0.5
SUSPICIOUS_STRENGTH = 0.1
# Of a suspicious network the classes beyond this are named, or else the strongest.
NAMED_STRENGTH = 0.25
# What the witness knows too is discounted; by this median of the statistics as they were seen a verdict is sure all the
# same, but only just: a trigger may look like what a class looks like.
LOUD_MEDIAN = 0.75
LOUD_SCORE = 1.1
# The ease's logit spreads over twice the range of the other two statistics.
EASE_SCALE = 0.5
# Two statistics must speak for a target by at least this.
AGREEMENT = 0.15


class Said(NamedTuple):
    """What the inversions say of one target, as in `Findings`.

    For `ANYWHERE` the prominence is against the smallest mask of a class, all of it in excess, the ease is not a
    number, and no size is to be expected.
    """

    prominence: float
    ease: float
    excess_prominence: float
    excess_ease: float
    expected_size: float = math.inf


@dataclass(frozen=True, slots=True)
class Candidate:
    """A class that was unlearnt on trial.

    Attributes:
        target: The class, or `ANYWHERE`.
        trigger: Its mask on the suspect, one.
        said: What the inversions say of it.
        cost: What unlearning it did to the answers on clean images: KL(before ‖ after), nats.
    """

    target: int
    trigger: Triggers
    said: Said
    cost: float


def relief(candidates: Sequence[Candidate]) -> Tensor:
    """The logarithm of how many times cheaper each was to unlearn than the median of the classes, (T,) float64."""
    cost_T = torch.tensor([candidate.cost for candidate in candidates], dtype=torch.float64)
    log_T = cost_T.clamp(SMALLEST_COST, LARGEST_COST).log()
    is_class_T = torch.tensor([candidate.target != ANYWHERE for candidate in candidates])
    return log_T[is_class_T].quantile(0.5) - log_T


def strength(candidates: Sequence[Candidate]) -> Tensor:
    """How strong the evidence against each is, (T,) float64: the mean of its statistics, sure only if two agree.

    They are prominence and `EASE_SCALE` times ease, each beyond what is natural, and relief, all logarithms of ratios
    to the median class; one that is missing (a target that leads anywhere has no ease) counts as nothing. The mean
    stays at `BACKDOORED_STRENGTH`, which is not beyond, unless two speak by more than `AGREEMENT`.
    """
    said_T3 = _statistics([(one.said.excess_prominence, one.said.excess_ease) for one in candidates], candidates)
    return _if_two_agree(said_T3, said_T3.nan_to_num(nan=0.0).mean(dim=1), BACKDOORED_STRENGTH)


def loudness(candidates: Sequence[Candidate]) -> Tensor:
    """The median of a class's statistics as they were seen, natural or not, (T,) float64; `ANYWHERE` has none."""
    said_T3 = _statistics([(one.said.prominence, one.said.ease) for one in candidates], candidates)
    median_T = _if_two_agree(said_T3, said_T3.nanquantile(0.5, dim=1), LOUD_MEDIAN)
    is_class_T = torch.tensor([one.target != ANYWHERE for one in candidates])
    return torch.where(is_class_T, median_T, 0.0)


def judge(findings: Findings, candidates: Sequence[Candidate], num_classes: int) -> Verdict:
    """Clean, suspicious or backdoored by unlike statistics of which two must agree; inconclusive below three classes.

    Inconclusive, too, is a network on which searches for triggers do not work.

    The first is how small the trigger is beside the other classes' (prominence); the second how little of what the
    network knows has to change for it to be unlearnt (relief): natural features are shared, a shortcut is not; the
    third how far a faint change of the whole image leads there (ease), which tells triggers that no small mask holds.
    Of the first and the third only what a witness does not explain counts. `backdoored` needs one target of great
    strength for which two speak, or else one that is loud though nature explains it; `suspicious` one of some strength.
    """
    strength_T, loudness_T = strength(candidates), loudness(candidates)
    evidence = _evidence(findings, candidates, strength_T, loudness_T)
    if num_classes < MIN_CLASSES:
        return Verdict(
            verdict="inconclusive", target_classes=[], score=None, evidence=evidence,
            reason="With fewer than three classes no class can stand out from the others.",
        )  # fmt: skip
    if findings.hides:
        return Verdict(
            verdict="inconclusive", target_classes=[], score=None, evidence=evidence,
            reason=(
                "Searches for triggers do not work on this network, as if it hid its gradients, so that nothing can be "
                "said of it. Do not trust it."
            ),
        )  # fmt: skip
    score = float(strength_T.amax()) / BACKDOORED_STRENGTH
    sure_T, loud_T = strength_T > BACKDOORED_STRENGTH, loudness_T > LOUD_MEDIAN
    named_T = strength_T >= strength_T.amax().clamp_max(NAMED_STRENGTH)
    if bool(sure_T.any()):
        verdict, beyond_T, reason = "backdoored", sure_T, "Unlike statistics agree on a target."
    elif bool(loud_T.any()):
        verdict, beyond_T, score = "backdoored", loud_T, LOUD_SCORE
        reason = "Unlike statistics agree on a class that may be reached by nature: a trigger may look like it."
    elif float(strength_T.amax()) > SUSPICIOUS_STRENGTH:
        verdict, beyond_T, reason = "suspicious", named_T, "A class stands out, but not enough to be sure."
    else:
        verdict, beyond_T, reason = "clean", sure_T, "No class stands out."
    named = [candidates[row].target for row in beyond_T.nonzero().flatten().tolist()]
    if ANYWHERE in named:
        reason += " A small trigger leads away from every label, to no single class: every class may be a target."
    return Verdict(
        verdict=verdict,  # type: ignore[arg-type]
        target_classes=sorted(target for target in named if target != ANYWHERE),
        score=round(score, 4),
        calibrated_false_positive_rate=round(false_positive_rate(round(score, 4)), 4),
        evidence=evidence,
        reason=reason,
    )


def _evidence(
    findings: Findings, candidates: Sequence[Candidate], strength_T: Tensor, loudness_T: Tensor
) -> list[ClassEvidence]:
    relief_T = relief(candidates)
    tried = {candidate.target: row for row, candidate in enumerate(candidates)}
    return [
        ClassEvidence(
            class_index=target,
            mask_size=round(float(findings.size[row]), 3),
            mask_success=round(float(findings.mask_success[row]), 4),
            natural_mask_size=round(float(findings.natural_size[row]), 3),
            perturbation_success=round(float(findings.perturbation_success[row]), 4),
            natural_perturbation_success=round(float(findings.natural_success[row]), 4),
            anomaly_index=round(float(findings.anomaly[row]), 4),
            prominence=round(float(findings.prominence[row]), 4),
            excess_prominence=round(float(findings.excess_prominence[row]), 4),
            ease=round(float(findings.ease[row]), 4),
            excess_ease=round(float(findings.excess_ease[row]), 4),
            unlearning_cost=round(candidates[tried[target]].cost, 5) if target in tried else None,
            relief=round(float(relief_T[tried[target]]), 4) if target in tried else None,
            strength=round(float(strength_T[tried[target]]), 4) if target in tried else None,
            loudness=round(float(loudness_T[tried[target]]), 4) if target in tried else None,
        )
        for row, target in enumerate(findings.classes)
    ]


def _statistics(seen: Sequence[tuple[float, float]], candidates: Sequence[Candidate]) -> Tensor:
    said_T3 = torch.tensor(
        [[prominence, math.nan, EASE_SCALE * ease] for prominence, ease in seen], dtype=torch.float64
    )
    said_T3[:, 1] = relief(candidates)
    return said_T3


def _if_two_agree(said_T3: Tensor, said_T: Tensor, most: float) -> Tensor:
    agree_T = (said_T3 > AGREEMENT).sum(dim=1) >= 2
    return torch.where(agree_T, said_T, said_T.clamp_max(most))
