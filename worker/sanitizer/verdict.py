"""Is the network backdoored, towards which classes, and how sure are we.

Shapes: K classes, T triggers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from worker.sanitizer import witness
from worker.sanitizer.activations import batched
from worker.sanitizer.case import Images, NonFiniteOutputsError
from worker.sanitizer.criteria import standardise
from worker.sanitizer.evaluate import predict
from worker.sanitizer.network import Network
from worker.sanitizer.reference_bank import false_positive_rate
from worker.sanitizer.report import ClassEvidence, Verdict
from worker.sanitizer.trigger import ANYWHERE, Triggers, success, synthesise

# Half as many left the masks of small networks so large that the target class did not stand out.
MASK_STEPS = 300
PERTURBATION_STEPS = 50
INVERSION_BATCH = 16
# Few classes are searched for several times each, so many times together: the smallest mask of a class counts.
NUM_CLASS_SEARCHES = 12
# So many searches more begin half open: they find small patches that the others miss, and miss others (all to all).
NUM_HALF_OPEN = 20
HALF_OPEN_STEPS = 200
HALF_OPEN_BATCH = 8
# Searches for a mask that leads anywhere: they end in different places, and the smallest counts.
NUM_ANYWHERE = 8
# Per root of the number of input values: an image of 28 x 28 gets an ℓ2 radius of 1.5.
RADIUS_PER_ROOT = 1.5 / 28
# Where the median class is reached from more than this share of the images no class can stand out by it: the radius
# shrinks, so many times at most. Enlarged digits, which a small network reads from few pixels, need it.
SATURATED = 0.9
SHRINKING = 2 / 3
MAX_SHRINKS = 4
# Success rates are kept this far from 0 and 1 before their logit is taken.
LOGIT_MARGIN = 0.01
# With more classes than this a short search for additive perturbations picks those that are looked at closely.
MAX_CLASSES_INVERTED = 20
SCREENING_STEPS = 20
MIN_CLASSES = 3
# A mask that leads anywhere stands out when it is smaller than this share of the smallest that leads to one class.
ANYWHERE_SHARE = 0.5
# Set by hand: the most frequent destination took less than this in the few clean networks that were looked at.
ATTRACTOR_SHARE = 0.7
MIN_LED_SHARE = 0.1
SMALLEST_COST = 1e-6
# Stands for the cost of a trial that diverged.
LARGEST_COST = 1e3

# Of the witness: one search for a mask of each class, which a network taught by little needs few steps for.
WITNESS_MASK_STEPS = 200

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
# By so much of ease, twice what is loud, and from so many of the images a class is reached like no other,
# whatever the other statistics say.
STANDS_OUT = 2 * LOUD_MEDIAN / EASE_SCALE
STANDS_OUT_SHARE = 0.5
# A class whose mask is smaller than the median class's by this logarithm is always looked at closely.
PROMINENT = 0.6
# Two statistics must speak for a target by at least this.
AGREEMENT = 0.15


@dataclass(frozen=True, slots=True)
class Findings:
    """What the inversions of the suspect say about each class that was looked at.

    Attributes:
        classes: The classes, K of them.
        triggers: Their mask triggers.
        size: ℓ1 size of each mask, in pixels.
        anywhere: The smallest mask found that leads away from the label, wherever to.
        destination: Share of the images led away by such masks that end at each class.
        perturbation_success: Share of images that an additive perturbation of a bounded norm sends to the class.
        natural_size: As `size`, of a witness.
        natural_success: As `perturbation_success`, of a witness.
    """

    classes: list[int]
    triggers: Triggers
    size: Tensor
    anywhere: Triggers
    destination: Tensor
    perturbation_success: Tensor
    natural_size: Tensor
    natural_success: Tensor

    @property
    def anomaly(self) -> Tensor:
        """Robust deviations of the logarithm of the size below the median of all classes (Neural Cleanse's index)."""
        return -standardise(self.size.log())

    @property
    def prominence(self) -> Tensor:
        """The logarithm of how many times smaller the mask is than the median class's."""
        return self.size.log().quantile(0.5) - self.size.log()

    @property
    def ease(self) -> Tensor:
        """The logit of the perturbation's success against the median class's."""
        return _against_median(self.perturbation_success)

    @property
    def excess_prominence(self) -> Tensor:
        """As much of the prominence as the witness does not explain."""
        return -witness.beyond(self.natural_size.log(), self.size.log())

    @property
    def expected_size(self) -> Tensor:
        """The size of each mask if it were as small beside the others as it is by nature; infinite if that is unknown.

        Where the witness explains nothing of the sizes it says nothing of any.
        """
        if not witness.slope(self.natural_size.log(), self.size.log()):
            return torch.full_like(self.size, torch.inf)
        return self.size * self.excess_prominence.exp()

    @property
    def excess_ease(self) -> Tensor:
        """As much of the ease as the witness does not explain."""
        return witness.beyond(_logit(self.natural_success), _logit(self.perturbation_success))

    @property
    def leads_anywhere(self) -> bool:
        """Whether a mask that leads away from every label is far smaller than any that leads to one class.

        It is then prominent by definition, so such a network is never judged clean.
        """
        return float(self.anywhere.size()[0]) < ANYWHERE_SHARE * float(self.size.min())

    @property
    def reach(self) -> Tensor:
        """How much more easily than by nature both searches reach each class, in robust deviations."""
        return standardise(self.excess_prominence) + standardise(self.excess_ease)

    @property
    def attractor(self) -> int | None:
        """Position of the class at which most images end that were led anywhere, if nearly all do."""
        share, row = self.destination.max(dim=0)
        return int(row) if float(share) >= ATTRACTOR_SHARE else None


def inspect(
    network: Network,
    images: Images,
    select: Images,
    num_classes: int,
    *,
    generator: torch.Generator,
    advance: Callable[[int], None] = lambda _: None,
) -> Findings:
    """Invert the suspect for every class (or the most reachable twenty) and for none, and a witness for the same.

    The suspect is left unchanged.

    Raises:
        NonFiniteOutputsError: It answers NaN or infinity to changed images, though not to the clean ones.
    """
    pixels_NCHW, labels_N = images.pixels_NCHW, images.labels
    classes = list(range(num_classes))
    if num_classes > MAX_CLASSES_INVERTED:
        share_K = reached(network, images, select, classes, steps=SCREENING_STEPS, generator=generator)
        classes = sorted(share_K.argsort(descending=True, stable=True)[:MAX_CLASSES_INVERTED].tolist())
    restarts = max(1, NUM_CLASS_SEARCHES // len(classes))
    found = synthesise(
        network, pixels_NCHW, labels_N, [*[ANYWHERE] * NUM_ANYWHERE, *classes * restarts], family="mask",
        steps=MASK_STEPS, batch_size=INVERSION_BATCH, generator=generator, advance=advance,
    )  # fmt: skip
    half_open = synthesise(
        network, pixels_NCHW, labels_N, classes * max(1, NUM_HALF_OPEN // len(classes)), family="mask",
        steps=HALF_OPEN_STEPS, batch_size=HALF_OPEN_BATCH, half_open=True, generator=generator, advance=advance,
    )  # fmt: skip
    share_K = reached(network, images, select, classes, steps=PERTURBATION_STEPS, generator=generator, advance=advance)
    anywhere = found.take(range(NUM_ANYWHERE))
    to_classes = found.take(range(NUM_ANYWHERE, len(found))).join(half_open)
    size_T = to_classes.size().double().cpu()
    best_K = size_T.view(-1, len(classes)).argmin(dim=0) * len(classes) + torch.arange(len(classes))
    natural_size_K, natural_success_K = _natural(network, images, select, classes, generator, advance)
    if not bool(torch.cat([size_T[best_K], natural_size_K]).isfinite().all()):
        raise NonFiniteOutputsError(
            "the model's answers to images that were pieced together or bear a trigger are not finite numbers, so that "
            "nothing can be searched for; look for divisions, roots and logarithms that are not kept from zero"
        )
    return Findings(
        classes,
        to_classes.take(best_K.tolist()),
        size_T[best_K],
        anywhere.take([int(anywhere.size().argmin())]),
        _destination(network, anywhere, images, classes),
        share_K,
        natural_size_K,
        natural_success_K,
    )


def num_steps() -> int:
    """How often `inspect` calls `advance`."""
    return MASK_STEPS + HALF_OPEN_STEPS + witness.STEPS + WITNESS_MASK_STEPS + 2 * PERTURBATION_STEPS


def _natural(
    network: Network,
    images: Images,
    select: Images,
    classes: Sequence[int],
    generator: torch.Generator,
    advance: Callable[[int], None],
) -> tuple[Tensor, Tensor]:
    """The sizes of a witness's masks, and from which share of the images faint changes lead there, (K,) each."""
    taught = witness.teach(network, images, generator=generator, advance=advance)
    masks = synthesise(
        taught, images.pixels_NCHW, images.labels, classes, family="mask", steps=WITNESS_MASK_STEPS,
        batch_size=INVERSION_BATCH, generator=generator, advance=advance,
    )  # fmt: skip
    share_K = reached(taught, images, select, classes, steps=PERTURBATION_STEPS, generator=generator, advance=advance)
    return masks.size().double().cpu(), share_K


def reached(
    network: Network,
    images: Images,
    select: Images,
    classes: Sequence[int],
    *,
    steps: int,
    generator: torch.Generator,
    advance: Callable[[int], None] = lambda _: None,
) -> Tensor:
    """From which share of the images an ℓ2-bounded perturbation leads to each class, (K,): not saturated if possible.

    `advance` is called with 1 after each step at the first radius.
    """
    radius = RADIUS_PER_ROOT * math.sqrt(images.pixels_NCHW[0].numel())

    def search(some: Sequence[int]) -> Tensor:
        found = synthesise(
            network, images.pixels_NCHW, images.labels, some, family="l2", steps=steps, batch_size=INVERSION_BATCH,
            radius=radius, generator=generator, advance=advance,
        )  # fmt: skip
        return success(network, found, select.pixels_NCHW, select.labels)

    starts = range(0, len(classes), MAX_CLASSES_INVERTED)
    for _ in range(MAX_SHRINKS + 1):
        share_K = torch.cat([search(classes[start : start + MAX_CLASSES_INVERTED]) for start in starts])
        if float(share_K.quantile(0.5)) <= SATURATED:
            break
        radius, advance = SHRINKING * radius, lambda _: None
    return share_K


def standing_out(
    network: Network,
    images: Images,
    select: Images,
    classes: Sequence[int],
    *,
    generator: torch.Generator,
    advance: Callable[[int], None] = lambda _: None,
) -> list[int]:
    """The classes that a faint change of the whole image reaches as no other.

    It needs no suspect: where a class stands out of a repaired network, what was unlearnt was something else.
    `advance` is called with 1 after each of `PERTURBATION_STEPS` steps.
    """
    share_K = reached(network, images, select, classes, steps=PERTURBATION_STEPS, generator=generator, advance=advance)
    out_K = (_against_median(share_K) > STANDS_OUT) & (share_K > STANDS_OUT_SHARE)
    return [classes[row] for row in out_K.nonzero().flatten().tolist()]


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

    The first is how small the trigger is beside the other classes' (prominence); the second how little of what the
    network knows has to change for it to be unlearnt (relief): natural features are shared, a shortcut is not; the
    third how far a faint change of the whole image leads there (ease), which tells triggers that no small mask holds.
    Of the first and the third only what a witness does not explain counts. `backdoored` needs one target of great
    strength for which two speak, or else one that is loud though nature explains it; `suspicious` one of some strength.
    """
    strength_T, loudness_T = strength(candidates), loudness(candidates)
    evidence = _evidence(findings, candidates)
    if num_classes < MIN_CLASSES:
        return Verdict(
            verdict="inconclusive", target_classes=[], score=None, evidence=evidence,
            reason="With fewer than three classes no class can stand out from the others.",
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


def _evidence(findings: Findings, candidates: Sequence[Candidate]) -> list[ClassEvidence]:
    relief_T = relief(candidates)
    tried = {candidate.target: row for row, candidate in enumerate(candidates)}
    return [
        ClassEvidence(
            class_index=target,
            mask_size=round(float(findings.size[row]), 3),
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


def _destination(network: Network, anywhere: Triggers, images: Images, classes: Sequence[int]) -> Tensor:
    ends = []
    for which in range(len(anywhere)):
        for pixels_BCHW, labels_B in zip(batched(images.pixels_NCHW), batched(images.labels), strict=True):
            answers_B = predict(network, anywhere.stamp(pixels_BCHW.to(network.device), which))
            ends.append(answers_B[answers_B != labels_B])
    ended = torch.cat(ends)
    counts = torch.stack([(ended == target).sum() for target in classes]).double()
    # A handful of images says nothing about where a trigger leads.
    return counts / max(len(ended), MIN_LED_SHARE * len(images) * len(anywhere))


def _against_median(share_K: Tensor) -> Tensor:
    logit_K = _logit(share_K)
    return logit_K - logit_K.quantile(0.5)


def _logit(share_K: Tensor) -> Tensor:
    return share_K.clamp(LOGIT_MARGIN, 1 - LOGIT_MARGIN).logit()
