"""Implicit Backdoor Adversarial Unlearning: a minimax game against one perturbation for all images.

Zeng et al., "Adversarial Unlearning of Backdoors via Implicit Hypergradient", ICLR 2022, in its first-order form: the
outer gradient takes the perturbation as given. The implicit term, by five rounds of a fixed point as in the paper, was
tried on a small residual network: it cost more accuracy and several times the time.

Shapes: B images of a batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional

from worker.sanitizer.network import Network, frozen
from worker.sanitizer.recipes.workbench import Outcome, Workbench
from worker.sanitizer.report import Choice
from worker.sanitizer.training import minibatches

# The authors' numbers, but for the bound on ‖δ‖₂: theirs is 10 for the 3,072 values of a CIFAR-10 image.
ROUNDS = 5
SIZE_WEIGHT = 0.001
ASCENT_RATE = 10.0
OUTER_RATE = 1e-3
L2_PER_ROOT_VALUE = 7 / 3072**0.5
BATCH_SIZE = 64
ASCENT_STEPS = 10
OUTER_STEPS = 40
# Of the outer loss; the rest is the loss on clean images, without which few images cost much accuracy.
PERTURBED_WEIGHT = 0.5


def i_bau(bench: Workbench) -> Outcome:
    """Alternate a universal perturbation δ that turns the network's answers with weights that withstand it.

    δ climbs CE(f(x + δ), f(x)) - 0.001 ‖δ‖² within a ball; then every parameter descends the cross-entropy of clean
    and of perturbed images, both under true labels.
    """
    network, repair = bench.network, bench.repair
    optimizer = torch.optim.Adam(network.parameters().values(), lr=OUTER_RATE)
    batches = minibatches(repair, batch_size=BATCH_SIZE, generator=bench.generator, device=network.device)
    delta_CHW = torch.zeros(repair.pixels_NCHW.shape[1:], device=network.device)
    with bench.phase("minimax", ROUNDS * (ASCENT_STEPS + OUTER_STEPS)) as advance:
        for _ in range(ROUNDS):
            for pixels_BCHW, _ in islice(batches, ASCENT_STEPS):
                delta_CHW = climb(network, pixels_BCHW, delta_CHW)
                advance(1)
            for pixels_BCHW, labels_B in islice(batches, OUTER_STEPS):
                perturbed = functional.cross_entropy(network(pixels_BCHW + delta_CHW), labels_B)
                clean = functional.cross_entropy(network(pixels_BCHW), labels_B)
                optimizer.zero_grad()
                outer = PERTURBED_WEIGHT * perturbed + (1 - PERTURBED_WEIGHT) * clean
                outer.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                advance(1)
    optimizer.zero_grad()
    reason = f"{ROUNDS} rounds of unlearning a universal perturbation, whatever they cost."
    return Outcome(choice=Choice(num_pruned=0, num_in_scope=0, reason=reason))


def climb(network: Network, pixels_BCHW: Tensor, delta_CHW: Tensor) -> Tensor:
    """One step of the perturbation up CE(f(x + δ), f(x)) - 0.001 ‖δ‖², back into its ball: (C, H, W)."""
    with frozen(network):
        said_B = network(pixels_BCHW).argmax(dim=1)
        variable_CHW = delta_CHW.detach().requires_grad_(True)
        turned = functional.cross_entropy(network(pixels_BCHW + variable_CHW), said_B)
        (gradient_CHW,) = torch.autograd.grad(turned - SIZE_WEIGHT * variable_CHW.square().sum(), variable_CHW)
    moved_CHW: Tensor = delta_CHW.detach() + ASCENT_RATE * gradient_CHW
    bound = L2_PER_ROOT_VALUE * moved_CHW.numel() ** 0.5
    shrink: Tensor = bound / torch.linalg.vector_norm(moved_CHW).clamp_min(bound)
    return moved_CHW * shrink
