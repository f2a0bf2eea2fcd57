"""Reconstructive Neuron Pruning: forget the clean task, recover it by masks alone, prune what recovery does not need.

Li et al., "Reconstructive Neuron Pruning for Backdoor Defense", ICML 2023.

Shapes: C channels.
"""

from __future__ import annotations

import math
from itertools import islice

import torch
from torch.nn import functional

from worker.sanitizer.evaluate import accuracy
from worker.sanitizer.network import frozen
from worker.sanitizer.recipes import soft_masks
from worker.sanitizer.recipes.thresholds import prune_low_masks
from worker.sanitizer.recipes.workbench import Outcome, Workbench
from worker.sanitizer.training import minibatches

BATCH_SIZE = 64
MOMENTUM = 0.9
# A tenth of the authors' rate: at theirs a small network forgets within ten steps, and the masks fall to zero together.
UNLEARN_RATE = 1e-3
UNLEARN_WEIGHT_DECAY = 5e-4
UNLEARN_EPOCHS = 20
GRADIENT_NORM = 20.0
# Forgetting ends at the accuracy of 2/K, which is the authors' 0.20 for ten classes, and of this at most.
CHANCES = 2.0
MAX_FORGOTTEN_ACCURACY = 0.6
RECOVER_RATE = 0.2
RECOVER_WEIGHT = 0.2
RECOVER_EPOCHS = 20
MAX_STEPS = 400


def rnp(bench: Workbench) -> Outcome:
    """Ascend the clean cross-entropy, learn masks that undo it, and silence the channels of low mask.

    The masks multiply scale and shift of the norm (weight and bias of the convolution without one). Pruning is done
    in the original network; the threshold is the largest that the accuracy budget admits on the selection split.
    """
    return prune_low_masks(bench, bench.network.sites, recovery_masks(bench))


def recovery_masks(bench: Workbench) -> dict[str, torch.Tensor]:
    """The masks that `rnp` learns, per site (C,) in [0, 1] on the CPU; the network is left as it is."""
    network = bench.network
    original = {name: tensor.detach().clone() for name, tensor in network.tensors.items()}
    try:
        _unlearn(bench)
        return _recover(bench)
    finally:
        network.load(original)


def _unlearn(bench: Workbench) -> None:
    network, repair = bench.network, bench.repair
    parameters = list(network.parameters().values())
    optimizer = torch.optim.SGD(parameters, lr=UNLEARN_RATE, momentum=MOMENTUM, weight_decay=UNLEARN_WEIGHT_DECAY)
    batches = minibatches(repair, batch_size=BATCH_SIZE, generator=bench.generator, device=network.device)
    steps = min(MAX_STEPS, UNLEARN_EPOCHS * math.ceil(len(repair) / BATCH_SIZE))
    forgotten = min(CHANCES / bench.num_classes, MAX_FORGOTTEN_ACCURACY)
    with bench.phase("unlearn", steps) as advance:
        for pixels_BCHW, labels_B in islice(batches, steps):
            # The accuracy falls off a cliff: a look per epoch, the authors' way, would come after the fall.
            if accuracy(network, repair.pixels_NCHW, repair.labels) <= forgotten:
                break
            loss = functional.cross_entropy(network(pixels_BCHW), labels_B)
            optimizer.zero_grad()
            (-loss).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM)
            optimizer.step()
            advance(1)
    optimizer.zero_grad()


def _recover(bench: Workbench) -> dict[str, torch.Tensor]:
    network, repair = bench.network, bench.repair
    mask = soft_masks.ones(network, network.sites)
    optimizer = torch.optim.SGD(list(mask.values()), lr=RECOVER_RATE, momentum=MOMENTUM)
    batches = minibatches(repair, batch_size=BATCH_SIZE, generator=bench.generator, device=network.device)
    steps = min(MAX_STEPS, RECOVER_EPOCHS * math.ceil(len(repair) / BATCH_SIZE))
    with frozen(network), bench.phase("recover", steps) as advance:
        for pixels_BCHW, labels_B in islice(batches, steps):
            logits_BK = network(pixels_BCHW, soft_masks.masked(network, network.sites, mask))
            optimizer.zero_grad()
            (RECOVER_WEIGHT * functional.cross_entropy(logits_BK, labels_B)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                for mask_C in mask.values():
                    mask_C.clamp_(0, 1)
            advance(1)
    return {name: mask_C.detach().cpu() for name, mask_C in mask.items()}
