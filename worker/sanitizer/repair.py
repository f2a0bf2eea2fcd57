"""Recover from a backdoor by training: a referee that has forgotten it, and unlearning on synthesised triggers.

Shapes: B images of a batch, T triggers, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional

from worker.sanitizer import masks
from worker.sanitizer.case import Images
from worker.sanitizer.network import Network
from worker.sanitizer.training import minibatches, sam_gradients
from worker.sanitizer.trigger import Inversion, Triggers

# The referee: weights shaken by half their spread, then sharpness-aware training on the clean images alone.
REFEREE_NOISE = 0.5
REFEREE_STEPS = 200
REFEREE_RATE = 0.01
REFEREE_RADIUS = 1.0
# Unlearning.
RESTARTS = 2
WARM_STEPS = 100
INVERSION_BATCH = 16
BATCH = 64
ANCHOR_WEIGHT = 3.0
TRIGGER_WEIGHT = 1.0
MAX_SHIFT = 1
WARM_UP_SHARE = 0.2
# A patch may grow by this factor before it counts as a natural feature rather than a leftover of the backdoor.
GROWTH = 1.5

Snapshot = dict[str, Tensor]


def snapshot(network: Network) -> Snapshot:
    """Copies of all tensors, by state-dict name."""
    return {name: tensor.detach().clone() for name, tensor in network.tensors.items()}


def referee(
    network: Network,
    images: Images,
    *,
    generator: torch.Generator,
    advance: Callable[[int], None] = lambda _: None,
) -> Snapshot:
    """The tensors of a less accurate network that has forgotten what clean images do not show; `network` is unchanged.

    Every weight matrix is shaken by noise of half its own spread, and the network is trained again on the clean
    images under adaptive sharpness-aware minimisation. Backdoors of all kinds fall with the accuracy; the referee
    tells which classes were within easier reach before, not what to answer.
    """
    before = snapshot(network)
    with torch.no_grad():
        for parameter in network.parameters().values():
            if parameter.dim() > 1:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.add_(REFEREE_NOISE * parameter.std() * noise)
    parameters = list(network.parameters().values())
    optimizer = torch.optim.Adam(parameters, lr=REFEREE_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, REFEREE_RATE, total_steps=REFEREE_STEPS, pct_start=WARM_UP_SHARE
    )
    batches = minibatches(images, batch_size=BATCH, generator=generator, device=network.device, max_shift=MAX_SHIFT)
    for pixels_BCHW, labels_B in islice(batches, REFEREE_STEPS):

        def loss(pixels_BCHW: Tensor = pixels_BCHW, labels_B: Tensor = labels_B) -> Tensor:
            return functional.cross_entropy(network(pixels_BCHW), labels_B)

        optimizer.zero_grad()
        sam_gradients(parameters, loss, radius=REFEREE_RADIUS)
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        schedule.step()
        advance(1)
    optimizer.zero_grad()
    after = snapshot(network)
    network.load(before)
    return after


def unlearn(
    network: Network,
    images: Images,
    targets: Sequence[int],
    max_sizes: Sequence[float],
    *,
    radius: float | None,
    steps: int,
    rate: float,
    generator: torch.Generator,
    mask: Mapping[str, Tensor] | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Train the network to keep the true label under triggers that are synthesised against it as it changes.

    Per step each trigger search goes one step on, and the network one on
    CE(f(x), y) + 3 KL(f₀(x) ‖ f(x)) + CE(f(x'), y), where x' carries one of the triggers and f₀ is the network as it
    came: its answers on clean images anchor the repair. The sizes of the triggers are bounded, so that what every
    network has, large universal perturbations, is left alone.

    Args:
        network: Changed in place.
        images: Clean labelled images.
        targets: The suspected classes.
        max_sizes: For each of them the bound of a mask's ℓ1 norm, in pixels.
        radius: Bound of an additive perturbation's ℓ2 norm; None for masks alone.
        steps: Gradient steps.
        rate: Peak learning rate of Adam.
        generator: CPU generator of all draws.
        mask: Channels that are silent and stay so.
        advance: Called with 1 after each step.
    """
    anchor = snapshot(network)
    shape_CHW = tuple(images.pixels_NCHW.shape[1:])
    wanted = [target for target in targets for _ in range(RESTARTS)]
    searches = [Inversion(network, wanted, family="mask", shape_CHW=shape_CHW, generator=generator)]
    if radius is not None:
        searches.append(
            Inversion(network, wanted, family="l2", shape_CHW=shape_CHW, radius=radius, generator=generator)
        )
    small = minibatches(images, batch_size=INVERSION_BATCH, generator=generator, device=network.device)
    for search in searches:
        for pixels_BCHW, labels_B in islice(small, WARM_STEPS):
            search.step(pixels_BCHW, labels_B)
    # Bounded only now: a mask that starts everywhere must be free to shrink to a place before its sum is capped.
    searches[0].max_size_T = torch.tensor([size for size in max_sizes for _ in range(RESTARTS)])
    parameters = list(network.parameters().values())
    optimizer = torch.optim.Adam(parameters, lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=WARM_UP_SHARE)
    batches = minibatches(images, batch_size=BATCH, generator=generator, device=network.device, max_shift=MAX_SHIFT)
    for pixels_BCHW, labels_B in islice(batches, steps):
        stamped = []
        for search in searches:
            search.step(*next(small))
            stamped.append(stamp_randomly(search.triggers(), pixels_BCHW, generator))
        with torch.no_grad():
            anchor_BK = network(pixels_BCHW, anchor).softmax(dim=1)
        logits_BK = network(pixels_BCHW)
        loss = functional.cross_entropy(logits_BK, labels_B)
        loss = loss + ANCHOR_WEIGHT * functional.kl_div(logits_BK.log_softmax(dim=1), anchor_BK, reduction="batchmean")
        for stamped_BCHW in stamped:
            loss = loss + TRIGGER_WEIGHT / len(stamped) * functional.cross_entropy(network(stamped_BCHW), labels_B)
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
