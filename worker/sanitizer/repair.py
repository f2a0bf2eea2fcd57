"""Unlearn a backdoor: train on synthesised triggers that go on searching while the network changes.

Shapes: B images of a batch, T triggers, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional

from worker.sanitizer import masks
from worker.sanitizer.case import Images
from worker.sanitizer.network import Network
from worker.sanitizer.training import minibatches, patchwork
from worker.sanitizer.trigger import Inversion, Triggers

RATE = 1e-3
MAX_SHIFT = 1
WARM_UP_SHARE = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How hard the network is taught, and how much it must remember. Set by hand on networks of the battery.

    Attributes:
        anchor_weight: w of the anchor: heavier keeps more of the accuracy, and more of the backdoor.
        trigger_weight: v of the images under a trigger.
        patchwork: Whether the anchor holds on images pieced together of several, or on the clean ones.
        batch_size: B.
        search_batch: Images of a step of the search.
        reach: How many times their bounds the masks may grow.
    """

    anchor_weight: float
    trigger_weight: float
    patchwork: bool
    batch_size: int
    search_batch: int
    reach: float = 1.0


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
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Train the network to keep the true label under triggers that are synthesised against it as it changes.

    Per step each trigger goes one step on, and the network one on CE(f(x), y) + w KL(f₀(z) ‖ f(z)) + v CE(f(x'), y),
    where x' carries one of the triggers and f₀ is the suspect: its answers anchor the repair, on z = x or on patchworks
    of the batch. The sizes of the triggers are bounded, so that what every network has, large universal perturbations,
    is left alone.

    Args:
        network: Changed in place.
        images: Clean labelled images.
        start: Masks to begin with, T of them.
        max_size_T: Bounds of their ℓ1 norms, in pixels, which `course.reach` widens.
        course: The weights and the sizes of the batches.
        anchor: The tensors of f₀.
        steps: Gradient steps.
        generator: CPU generator of all draws.
        mask: Channels that are silent and stay so.
        advance: Called with 1 after each step.
    """
    search = Inversion(
        network,
        start.targets_T.tolist(),
        family="mask",
        shape_CHW=tuple(images.pixels_NCHW.shape[1:]),
        max_size_T=course.reach * max_size_T,
        start=start,
        generator=generator,
    )
    device = network.device
    small = minibatches(images, batch_size=course.search_batch, generator=generator, device=device)
    parameters = list(network.parameters().values())
    optimizer = torch.optim.Adam(parameters, lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=WARM_UP_SHARE)
    batches = minibatches(images, batch_size=course.batch_size, generator=generator, device=device, max_shift=MAX_SHIFT)
    for pixels_BCHW, labels_B in islice(batches, steps):
        search.step(*next(small))
        shown = [pixels_BCHW, stamp_randomly(search.triggers(), pixels_BCHW, generator)]
        if course.patchwork:
            shown.append(patchwork(pixels_BCHW, generator))
        anchored = len(shown) - 1 if course.patchwork else 0
        with torch.no_grad():
            anchor_BK = network(shown[anchored], anchor).softmax(dim=1)
        # One pass over all of them: small batches cost more than their share.
        logits = torch.split(network(torch.cat(shown)), len(pixels_BCHW))
        forgotten = functional.kl_div(logits[anchored].log_softmax(dim=1), anchor_BK, reduction="batchmean")
        loss = functional.cross_entropy(logits[0], labels_B)
        loss = loss + course.anchor_weight * forgotten
        loss = loss + course.trigger_weight * functional.cross_entropy(logits[1], labels_B)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if mask is not None:
            masks.silence(network, mask)
        advance(1)
    optimizer.zero_grad()


def stamp_randomly(triggers: Triggers, pixels_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Each image with one of the triggers, drawn at random: (B, C, H, W) in [0, 1]."""
    which_B = torch.randint(len(triggers), (len(pixels_BCHW),), generator=generator).to(pixels_BCHW.device)
    amount_B1HW, pattern_BCHW = triggers.amount_T1HW[which_B], triggers.pattern_TCHW[which_B]
    if triggers.family == "mask":
        return (1 - amount_B1HW) * pixels_BCHW + amount_B1HW * pattern_BCHW
    return (pixels_BCHW + pattern_BCHW).clamp(0, 1)


def interpolate(network: Network, before: Snapshot, after: Snapshot, share: float) -> None:
    """Put the network at `share` of the way from one set of tensors to another; integers are those of `before`."""
    network.load(
        {
            name: torch.lerp(tensor, after[name], share) if tensor.is_floating_point() else tensor
            for name, tensor in before.items()
        }
    )
