"""What trigger inversion says about each class of a suspect, beside what it says of a witness.

Shapes: K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.sanitizer import witness
from worker.sanitizer.activations import batched
from worker.sanitizer.case import Images, NonFiniteOutputsError
from worker.sanitizer.criteria import standardise
from worker.sanitizer.evaluate import predict
from worker.sanitizer.network import Network
from worker.sanitizer.trigger import ANYWHERE, Triggers, success, synthesise
from worker.sanitizer.variety import Vary, patchworks

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
# The median class's best mask works on fewer images where gradients are hidden; on 13 networks of the battery the
# smallest one, which works less, does on 87 % or more.
SEARCHES_WORK_AT = 0.5
# With more classes than this a short search for additive perturbations picks those that are looked at closely.
MAX_CLASSES_INVERTED = 20
SCREENING_STEPS = 20
# A mask that leads anywhere stands out when it is smaller than this share of the smallest that leads to one class.
ANYWHERE_SHARE = 0.5
# Set by hand: the most frequent destination took less than this in the few clean networks that were looked at.
ATTRACTOR_SHARE = 0.7
MIN_LED_SHARE = 0.1
# Of the witness: one search for a mask of each class, which a network taught by little needs few steps for.
WITNESS_MASK_STEPS = 200
# By so much of ease, twice what a verdict takes for loud, and from so many of the images a class is reached like no
# other, whatever the other statistics say.
STANDS_OUT = 3.0
STANDS_OUT_SHARE = 0.5


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
        mask_success: The largest share of the selection images that any mask found sends to the class.
    """

    classes: list[int]
    triggers: Triggers
    size: Tensor
    anywhere: Triggers
    destination: Tensor
    perturbation_success: Tensor
    natural_size: Tensor
    natural_success: Tensor
    mask_success: Tensor

    @property
    def hides(self) -> bool:
        """Whether searches for masks fail: a network with gradients is sent to nearly every class by some mask."""
        return float(self.mask_success.quantile(0.5)) < SEARCHES_WORK_AT

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
    vary: Vary = patchworks,
    advance: Callable[[int], None] = lambda _: None,
) -> Findings:
    """Invert the suspect for every class (or the most reachable twenty) and for none, and a witness for the same.

    The suspect is left unchanged; the witness is taught on images that `vary` makes.

    Raises:
        NonFiniteOutputsError: It answers NaN or infinity to changed images, though not to the clean ones.
    """
    pixels_NCHW, labels_N = images.pixels_NCHW, images.labels
    classes = most_reachable(network, images, select, num_classes, generator=generator)
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
    natural_size_K, natural_success_K = _natural(network, images, select, classes, generator, vary, advance)
    if not bool(torch.cat([size_T[best_K], natural_size_K]).isfinite().all()):
        raise NonFiniteOutputsError(
            "the model's answers to images that were pieced together or bear a trigger are not finite numbers, so that "
            "nothing can be searched for; look for divisions, roots and logarithms that are not kept from zero"
        )
    masks = to_classes.take(best_K.tolist())
    shares_T = success(network, to_classes, select.pixels_NCHW, select.labels)
    return Findings(
        classes,
        masks,
        size_T[best_K],
        anywhere.take([int(anywhere.size().nan_to_num(torch.inf).argmin())]),
        _destination(network, anywhere, images, classes),
        share_K,
        natural_size_K,
        natural_success_K,
        shares_T.view(-1, len(classes)).amax(dim=0),
    )


def most_reachable(
    network: Network, images: Images, select: Images, num_classes: int, *, generator: torch.Generator
) -> list[int]:
    """Every class, or of more than twenty those that a short search for a faint change reaches most often."""
    classes = list(range(num_classes))
    if num_classes <= MAX_CLASSES_INVERTED:
        return classes
    share_K = reached(network, images, select, classes, steps=SCREENING_STEPS, generator=generator)
    return sorted(share_K.argsort(descending=True, stable=True)[:MAX_CLASSES_INVERTED].tolist())


def num_steps() -> int:
    """How often `inspect` calls `advance`."""
    return MASK_STEPS + HALF_OPEN_STEPS + witness.STEPS + WITNESS_MASK_STEPS + 2 * PERTURBATION_STEPS


def _natural(
    network: Network,
    images: Images,
    select: Images,
    classes: Sequence[int],
    generator: torch.Generator,
    vary: Vary,
    advance: Callable[[int], None],
) -> tuple[Tensor, Tensor]:
    """The sizes of a witness's masks, and from which share of the images faint changes lead there, (K,) each."""
    taught = witness.teach(network, images, generator=generator, vary=vary, advance=advance)
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
