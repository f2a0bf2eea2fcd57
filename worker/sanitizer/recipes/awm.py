"""Adversarial Weight Masking: shrink the convolution weights that a universal perturbation relies on.

Chai and Chen, "One-shot Neural Backdoor Erasing via Adversarial Weight Masking", NeurIPS 2022.

Shapes: B images of a batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional

from worker.sanitizer.network import Network, frozen
from worker.sanitizer.recipes.layer_outliers import RecipeNotApplicableError
from worker.sanitizer.recipes.workbench import Outcome, Workbench
from worker.sanitizer.report import Choice
from worker.sanitizer.training import Batch, minibatches

# α, γ and the rates are the paper's. Its bound on ‖δ‖₁ is 1,000 for the 3,072 values of a CIFAR-10 image, 100 for tiny
# sets; in small networks 1,000 costs ten points of accuracy and 300 costs half of that.
CLEAN_WEIGHT = 0.9
MASK_WEIGHT = 1e-8
MASK_RATE = 1e-2
ASCENT_RATE = 10.0
L1_PER_VALUE = 300 / 3072
L1_PER_VALUE_TINY = 100 / 3072
TINY_SET = 100
BATCH_SIZE = 64
ROUNDS = 10
ASCENT_STEPS = 10
MASK_STEPS = 15


def awm(bench: Workbench) -> Outcome:
    """Learn a soft mask in [0, 1] of every convolution weight and multiply the weights by it; nothing is pruned whole.

    Each round raises CE(f(x + δ), f(x)) over one δ for all images, scales δ to ‖δ‖₁ <= τ, and lowers
    0.9 CE(f_m(x), y) + 0.1 CE(f_m(x + δ), y) + 1e-8 ‖m‖₁ over the masks.

    Raises:
        RecipeNotApplicableError: There is no convolution.
    """
    weights = _weights(bench.network)
    if not weights:
        raise RecipeNotApplicableError(
            "Recipe `awm` needs a convolution with stored weights, and there is none. Use another recipe."
        )
    mask = weight_masks(bench)
    with torch.no_grad():
        for name, weight in weights.items():
            weight.mul_(mask[name])
    kept = float(torch.cat([mask_CIHW.flatten() for mask_CIHW in mask.values()]).mean())
    reason = f"Soft masks of the convolution weights, {kept:.1%} of 1 on average, whatever they cost."
    return Outcome(choice=Choice(num_pruned=0, num_in_scope=0, reason=reason))


def weight_masks(bench: Workbench) -> dict[str, Tensor]:
    """The masks that `awm` learns, by the weight's name and of its shape, in [0, 1]; the network is left as it is."""
    network, repair = bench.network, bench.repair
    weights = _weights(network)
    mask = {name: torch.ones_like(weight, requires_grad=True) for name, weight in weights.items()}
    optimizer = torch.optim.Adam(list(mask.values()), lr=MASK_RATE)
    batches = minibatches(repair, batch_size=BATCH_SIZE, generator=bench.generator, device=network.device)
    per_value = L1_PER_VALUE_TINY if len(repair) < TINY_SET else L1_PER_VALUE
    with frozen(network), bench.phase("weight_masks", ROUNDS) as advance:
        for _ in range(ROUNDS):
            with torch.no_grad():
                masked = {name: mask[name] * weight for name, weight in weights.items()}
            delta_CHW = _perturbation(network, masked, batches, repair.pixels_NCHW.shape[1:], per_value)
            for pixels_BCHW, labels_B in islice(batches, MASK_STEPS):
                masked = {name: mask[name] * weight for name, weight in weights.items()}
                clean = functional.cross_entropy(network(pixels_BCHW, masked), labels_B)
                disturbed = functional.cross_entropy(network(pixels_BCHW + delta_CHW, masked), labels_B)
                size = torch.stack([mask_CIHW.sum() for mask_CIHW in mask.values()]).sum()
                loss = CLEAN_WEIGHT * clean + (1 - CLEAN_WEIGHT) * disturbed + MASK_WEIGHT * size
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                with torch.no_grad():
                    for mask_CIHW in mask.values():
                        mask_CIHW.clamp_(0, 1)
            advance(1)
    return {name: mask_CIHW.detach() for name, mask_CIHW in mask.items()}


def _weights(network: Network) -> dict[str, Tensor]:
    return {name: weight for name, weight in network.parameters().items() if weight.dim() == 4}


def _perturbation(
    network: Network, tensors: Mapping[str, Tensor], batches: Iterator[Batch], shape: Sequence[int], per_value: float
) -> Tensor:
    delta_CHW = torch.zeros(shape, device=network.device, requires_grad=True)
    for pixels_BCHW, _ in islice(batches, ASCENT_STEPS):
        with torch.no_grad():
            said_B = network(pixels_BCHW, tensors).argmax(dim=1)
        loss = functional.cross_entropy(network(pixels_BCHW + delta_CHW, tensors), said_B)
        (gradient_CHW,) = torch.autograd.grad(loss, delta_CHW)
        with torch.no_grad():
            delta_CHW.add_(ASCENT_RATE * gradient_CHW)
    with torch.no_grad():
        bound = per_value * delta_CHW.numel()
        return (delta_CHW * (bound / delta_CHW.abs().sum().clamp_min(bound))).detach()
