"""Unlearn a backdoor: train on synthesised triggers that go on searching while the network changes.

Shapes: B images of a batch, T triggers, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import torch
from torch import Tensor
from torch.nn import functional

from worker.sanitizer import masks
from worker.sanitizer.case import Images
from worker.sanitizer.disturbances import disturb
from worker.sanitizer.network import Network
from worker.sanitizer.residual import ResidualSearch
from worker.sanitizer.training import minibatches, shift
from worker.sanitizer.trigger import ANYWHERE, Inversion, Triggers, at_once
from worker.sanitizer.variety import Vary, patchworks

RATE = 1e-3
MAX_SHIFT = 1
WARM_UP_SHARE = 0.2
# Searches for triggers that depend on the image; one that leads wherever it can needs no suspected class.
NUM_RESIDUAL = 4
# Per root of the number of input values: three times the radius of the perturbations that the verdict weighs.
RESIDUAL_RADIUS_PER_ROOT = 4.5 / 28
# No mask counts as smaller than this, in pixels.
SMALLEST_MASK = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How hard the network is taught, and how much it must remember. Set by hand on networks of the battery.

    Attributes:
        anchor_weight: w of the anchor: heavier keeps more of the accuracy, and more of the backdoor.
        trigger_weight: v of the images under a trigger.
        patchwork: Whether the anchor holds, and triggers are unlearnt, on patchworks or what stands for them
            (`variety`), by the suspect's answers, or on the clean images, by their labels.
        batch_size: B.
        search_batch: Images of a step of the search.
        random_weight: r of patchworks under random triggers.
        residual_weight: q of patchworks under triggers that depend on the image.
        temperature: τ, by which logits are divided before they are compared with the suspect's. The answers of a sure
            network say little of the other classes; softened ones do, and so hold more of what it knows.
        mirrored: Whether patchworks are mirrored at random: what the suspect answers to these is knowledge too. What
            stands for them is always.
        rate_share: The learning rate, in shares of `RATE`.
        length_share: The gradient steps of a round, in shares of the usual number.
    """

    anchor_weight: float
    trigger_weight: float
    patchwork: bool
    batch_size: int
    search_batch: int
    random_weight: float = 0.0
    residual_weight: float = 0.0
    temperature: float = 1.0
    mirrored: bool = False
    rate_share: float = 1.0
    length_share: float = 1.0


@dataclass(frozen=True, slots=True)
class Lesson:
    """Images of a training step, and what the network is taught to answer to them.

    Attributes:
        pixels_BCHW: The images.
        labels_weight: Of CE(f, y).
        anchor_weight: Of τ KL(f₀ ‖ f), both softened by τ.
    """

    pixels_BCHW: Tensor
    labels_weight: float = 0.0
    anchor_weight: float = 0.0

    def loss(self, logits_BK: Tensor, labels_B: Tensor, anchor_BK: Tensor, temperature: float) -> Tensor:
        """The weighted sum, the mean over the images, nats. `anchor_BK` are probabilities, softened already."""
        loss = logits_BK.new_zeros(())
        if self.labels_weight:
            loss = loss + self.labels_weight * functional.cross_entropy(logits_BK, labels_B)
        if self.anchor_weight:
            softened_BK = (logits_BK / temperature).log_softmax(dim=1)
            forgotten = functional.kl_div(softened_BK, anchor_BK, reduction="batchmean")
            loss = loss + temperature * self.anchor_weight * forgotten
        return loss


Snapshot = dict[str, Tensor]


def snapshot(network: Network) -> Snapshot:
    """Copies of all tensors, by state-dict name; tensors that are tied share one copy."""
    copies: dict[int, Tensor] = {}
    for tensor in network.tensors.values():
        copies.setdefault(id(tensor), tensor.detach().clone())
    return {name: copies[id(tensor)] for name, tensor in network.tensors.items()}


def unlearn(
    network: Network,
    images: Images,
    start: Triggers,
    max_size_T: Tensor,
    course: Course,
    *,
    anchor: Snapshot,
    steps: int,
    generator: torch.Generator,
    mask: Mapping[str, Tensor] | None = None,
    residual_targets: Sequence[int] = (ANYWHERE,),
    vary: Vary = patchworks,
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Train the network to answer alike with and without triggers, which go on searching while it changes.

    Per step each trigger goes one step on, and the network one on

        CE(f(s(x)), y) + w K(z) + v K(t(z)) + r K(d(z)) + q K(g(z))  with  K(z') = τ KL(f₀(z) ‖ f(z')),

    where f₀ is the suspect, s a random shift, z a patchwork of the batch or what stands for it (`vary`), t one of the
    masks by its `chances`, d a random trigger and g one that depends on the image and leads where it was asked to.
    Patchworks are not shifted: to a network with a warp for a trigger a shift can be one, and the suspect's answer
    would teach the backdoor anew; whole images that stand for them are moved only where it recognises them. In K both
    answers are softened by τ, after Hinton et al., "Distilling the Knowledge in a Neural Network", 2015 (whose τ² in
    place of τ would keep the gradients' size). The suspect's answers to z are what it knows of clean images; there is
    no end of patchworks, so none is learnt by heart. Without patchworks z is s(x), and CE(f(t(z)), y) stands for
    K(t(z)). The sizes of the masks are bounded, so that what every network has, large universal perturbations, is left
    alone.

    Args:
        network: Changed in place.
        images: Clean labelled images.
        start: Masks to begin with, T of them.
        max_size_T: Bounds of their ℓ1 norms, in pixels.
        course: The weights and the sizes of the batches.
        anchor: The tensors of f₀.
        steps: Gradient steps.
        generator: CPU generator of all draws.
        mask: Channels that are silent and stay so.
        residual_targets: Where triggers that depend on the image lead, in turn; no more than `NUM_RESIDUAL` of them.
        vary: What makes patchworks of a batch, or takes their place.
        advance: Called with 1 after each step.
    """
    search = Inversion(
        network,
        start.targets_T.tolist(),
        family="mask",
        shape_CHW=tuple(images.pixels_NCHW.shape[1:]),
        max_size_T=max_size_T,
        start=start,
        generator=generator,
    )
    residual = None
    if course.residual_weight:
        residual = ResidualSearch(
            network,
            list(islice(cycle(residual_targets), NUM_RESIDUAL)),
            shape_CHW=tuple(images.pixels_NCHW.shape[1:]),
            radius=RESIDUAL_RADIUS_PER_ROOT * math.sqrt(images.pixels_NCHW[0].numel()),
            generator=generator,
        )
    chance_T = chances(start)
    device = network.device
    small = minibatches(images, batch_size=course.search_batch, generator=generator, device=device)
    parameters = list(network.parameters().values())
    rate = course.rate_share * RATE
    optimizer = torch.optim.Adam(parameters, lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=WARM_UP_SHARE)
    batches = minibatches(images, batch_size=course.batch_size, generator=generator, device=device)
    for pixels_BCHW, labels_B in islice(batches, steps):
        moved_BCHW = shift(pixels_BCHW, MAX_SHIFT, generator)
        few = next(small)
        search.step(*few)
        pieced_BCHW = moved_BCHW
        if course.patchwork:
            pieced_BCHW = vary(pixels_BCHW, labels_B, generator, mirrored=course.mirrored)
        with torch.no_grad():
            anchor_BK = (network(pieced_BCHW, anchor) / course.temperature).softmax(dim=1)
        lessons = _lessons(course, moved_BCHW, pieced_BCHW, search.triggers(), chance_T, generator)
        if residual is not None:
            residual.step(*few)
            lessons.append(Lesson(residual.stamp_randomly(pieced_BCHW), anchor_weight=course.residual_weight))
        optimizer.zero_grad()
        # Small batches cost more than their share; large images go through by themselves, for the sake of memory.
        for rows in at_once(len(lessons), pixels_BCHW):
            part = [lessons[row] for row in rows.tolist()]
            logits = torch.split(network(torch.cat([one.pixels_BCHW for one in part])), len(pixels_BCHW))
            losses = [
                one.loss(logits_BK, labels_B, anchor_BK, course.temperature)
                for one, logits_BK in zip(part, logits, strict=True)
            ]
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if mask is not None:
            masks.silence(network, mask)
        advance(1)
    optimizer.zero_grad()


def _lessons(
    course: Course,
    moved_BCHW: Tensor,
    pieced_BCHW: Tensor,
    triggers: Triggers,
    chance_T: Tensor,
    generator: torch.Generator,
) -> list[Lesson]:
    stamped_BCHW = stamp_randomly(triggers, chance_T, pieced_BCHW, generator)
    if not course.patchwork:
        return [
            Lesson(moved_BCHW, labels_weight=1.0, anchor_weight=course.anchor_weight),
            Lesson(stamped_BCHW, labels_weight=course.trigger_weight),
        ]
    lessons = [
        Lesson(moved_BCHW, labels_weight=1.0),
        Lesson(stamped_BCHW, anchor_weight=course.trigger_weight),
        Lesson(pieced_BCHW, anchor_weight=course.anchor_weight),
    ]
    if course.random_weight:
        lessons.append(Lesson(disturb(pieced_BCHW, generator), anchor_weight=course.random_weight))
    return lessons


def chances(triggers: Triggers) -> Tensor:
    """How often each mask is drawn, (T,) on the CPU, together 1: in inverse proportion to its size.

    Of several suspects the one of the smallest mask is the likeliest backdoor, and hides the least of an image. A mask
    whose search diverged counts as one of the whole image.
    """
    area = triggers.amount_T1HW[0].numel()
    size_T = triggers.size().double().cpu().nan_to_num(nan=area).clamp_min(SMALLEST_MASK)
    return (1 / size_T) / (1 / size_T).sum()


def stamp_randomly(triggers: Triggers, chance_T: Tensor, pixels_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Each image with one of the triggers, drawn by their chances: (B, C, H, W) in [0, 1]."""
    which_B = torch.multinomial(chance_T, len(pixels_BCHW), replacement=True, generator=generator)
    which_B = which_B.to(pixels_BCHW.device)
    amount_B1HW, pattern_BCHW = triggers.amount_T1HW[which_B], triggers.pattern_TCHW[which_B]
    if triggers.family == "mask":
        return (1 - amount_B1HW) * pixels_BCHW + amount_B1HW * pattern_BCHW
    return (pixels_BCHW + pattern_BCHW).clamp(0, 1)


def interpolate(network: Network, before: Snapshot, after: Snapshot, share: float) -> None:
    """Put the network at `share` of the way from one set of tensors to another; integers are those of `before`.

    So is what does not differ, such as a constant that holds infinities, between which there is no way.
    """

    def between(tensor: Tensor, other: Tensor) -> Tensor:
        moves = tensor.is_floating_point() and not torch.equal(tensor, other)
        return torch.lerp(tensor, other, share) if moves else tensor

    network.load({name: between(tensor, after[name]) for name, tensor in before.items()})
