"""Adversarial Neuron Pruning: mask the channels that turn first when the network's norms are disturbed.

Wu and Wang, "Adversarial Neuron Pruning Purifies Backdoored Deep Models", NeurIPS 2021.

Shapes: B images of a batch, C channels.
"""

from __future__ import annotations

from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional

from worker.sanitizer import criteria
from worker.sanitizer.network import frozen
from worker.sanitizer.recipes import soft_masks
from worker.sanitizer.recipes.thresholds import prune_low_masks
from worker.sanitizer.recipes.workbench import Outcome, Workbench
from worker.sanitizer.training import minibatches

# The paper's numbers but for rate and steps, 0.2 and 2,000 there: in narrow layers, where each channel matters, those
# drive most masks to zero at once, and masks that are all equal rank nothing.
EPSILON = 0.4
CLEAN_WEIGHT = 0.2
LEARNING_RATE = 0.002
MOMENTUM = 0.9
BATCH_SIZE = 128
STEPS = 200


def anp(bench: Workbench) -> Outcome:
    """Learn masks m under y = (m + δ) γ x̂ + (1 + ξ) β and silence the channels of low m.

    δ and ξ start uniform in ±0.4 and take one sign-gradient step up the cross-entropy; then m goes down
    0.2 CE(undisturbed) + 0.8 CE(disturbed), kept in [0, 1]. Without a batch norm, δ and ξ disturb the convolution's
    weight and bias. The threshold is the largest that the accuracy budget admits on the selection split.
    """
    return prune_low_masks(bench, bench.network.sites, adversarial_masks(bench))


def adversarial_masks(bench: Workbench) -> criteria.Scores:
    """The masks that `anp` learns, per site (C,) in [0, 1] on the CPU; the network is left as it is."""
    network, generator = bench.network, bench.generator
    sites = network.sites
    mask = soft_masks.ones(network, sites)
    optimizer = torch.optim.SGD(list(mask.values()), lr=LEARNING_RATE, momentum=MOMENTUM)
    batches = minibatches(bench.repair, batch_size=BATCH_SIZE, generator=generator, device=network.device)
    with frozen(network), bench.phase("adversarial_masks", STEPS) as advance:
        for pixels_BCHW, labels_B in islice(batches, STEPS):
            delta, xi = _uniform(mask, generator), _uniform(mask, generator)
            fixed = {name: mask_C.detach() for name, mask_C in mask.items()}
            tensors = soft_masks.masked(network, sites, _sum(fixed, delta), _sum(None, xi))
            loss = functional.cross_entropy(network(pixels_BCHW, tensors), labels_B)
            noises = [*delta.values(), *xi.values()]
            # A norm without a shift has a ξ that nothing depends on.
            gradients = torch.autograd.grad(loss, noises, materialize_grads=True)
            with torch.no_grad():
                for noise_C, gradient_C in zip(noises, gradients, strict=True):
                    noise_C.add_(EPSILON * gradient_C.sign()).clamp_(-EPSILON, EPSILON)
                    noise_C.requires_grad_(False)
            disturbed = soft_masks.masked(network, sites, _sum(mask, delta), _sum(None, xi))
            calm = {name: torch.ones_like(mask_C) for name, mask_C in fixed.items()}
            clean = functional.cross_entropy(
                network(pixels_BCHW, soft_masks.masked(network, sites, mask, calm)), labels_B
            )
            worst = functional.cross_entropy(network(pixels_BCHW, disturbed), labels_B)
            optimizer.zero_grad()
            (CLEAN_WEIGHT * clean + (1 - CLEAN_WEIGHT) * worst).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                for mask_C in mask.values():
                    mask_C.clamp_(0, 1)
            advance(1)
    return {name: mask_C.detach().cpu() for name, mask_C in mask.items()}


def _uniform(mask: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    return {
        name: (EPSILON * (2 * torch.rand(mask_C.shape, generator=generator) - 1)).to(mask_C.device).requires_grad_(True)
        for name, mask_C in mask.items()
    }


def _sum(mask: dict[str, Tensor] | None, noise: dict[str, Tensor]) -> dict[str, Tensor]:
    """By site the mask, or one where there is none, plus the noise."""
    return {name: noise_C + (1 if mask is None else mask[name]) for name, noise_C in noise.items()}
