"""The figures of one job: accuracy, attack success, robust accuracy, defence effectiveness, and re-activation.

Attack success (ASR) and robust accuracy (RA) come from `train.evaluate`, which leaves images of the target class out.

Shape legend: N images, C channels, H height, W width.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.battery import data
from benchmarks.battery.attacks import Attack
from benchmarks.battery.data import Dataset

# Re-activation: what a few poisoned samples among clean ones wake in a repaired network (Min et al. 2024, "retuning").
# Measured on clean models of the battery: the five samples alone, or a rate of 0.01, plant a backdoor in a network that
# never had one, up to 100 %, and cost it its accuracy. These values leave it at 1 to 11 %: what is more was asleep.
REACTIVATION_SAMPLES = 5
REACTIVATION_CLEAN_SAMPLES = 500
REACTIVATION_EPOCHS = 5
REACTIVATION_BATCH = 32
REACTIVATION_LEARNING_RATE = 0.001
REACTIVATION_MOMENTUM = 0.9


def defence_effectiveness(
    *, attack_before: float, attack_after: float, accuracy_before: float, accuracy_after: float
) -> float:
    """Return DER = [max(0, ASR_before - ASR_after) - max(0, ACC_before - ACC_after) + 1] / 2.

    0.5 is no effect, 1 is perfect. Source: Zhu et al. 2023 (FT-SAM, arXiv 2304.11823), section 4.1.
    """
    return (max(0.0, attack_before - attack_after) - max(0.0, accuracy_before - accuracy_after) + 1) / 2


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of one job from two answers of `train.evaluate`; of several triggers the worst counts.

    Attack success is the highest of any trigger, robust accuracy and DER the lowest, each found by itself. They are
    None for a clean model.
    """
    figures: dict[str, Any] = {
        "accuracy_before": before["clean_accuracy"],
        "accuracy_after": after["clean_accuracy"],
        "attack_success_by_trigger": [list(before["attack_success"]), list(after["attack_success"])],
    }
    for key in ("attack_success_before", "attack_success_after", "robust_accuracy_before", "robust_accuracy_after"):
        figures[key] = None
    figures["der"] = None
    if before["attack_success"]:
        for when, evaluated in (("before", before), ("after", after)):
            figures[f"attack_success_{when}"] = max(evaluated["attack_success"])
            figures[f"robust_accuracy_{when}"] = min(evaluated["robust_accuracy"])
        figures["der"] = min(
            defence_effectiveness(
                attack_before=attack_before,
                attack_after=attack_after,
                accuracy_before=before["clean_accuracy"],
                accuracy_after=after["clean_accuracy"],
            )
            for attack_before, attack_after in zip(before["attack_success"], after["attack_success"], strict=True)
        )
    return figures


def poisoned_samples(dataset: Dataset, attack: Attack, seed: int) -> tuple[Tensor, Tensor]:
    """Return the attacker's few triggered images in [0, 1] with the labels that the backdoor wants.

    They are drawn from the training split, so that none of them is ever scored. Several triggers take turns.
    """
    generator = torch.Generator().manual_seed(seed)
    order_N = torch.randperm(len(dataset.train_labels_N), generator=generator)
    taken: set[int] = set()
    images, labels = [], []
    for position in range(REACTIVATION_SAMPLES):
        trigger = position % attack.num_triggers
        scored_N = attack.scored(dataset.train_labels_N[order_N], trigger)
        index = next(int(i) for i in order_N[scored_N] if int(i) not in taken)
        taken.add(index)
        images.append(attack.stamp(dataset.train_images_NCHW[index : index + 1].float() / 255, trigger))
        labels.append(attack.targets(dataset.train_labels_N[index : index + 1], trigger))
    return torch.cat(images), torch.cat(labels)


def reactivate(network: nn.Module, dataset: Dataset, images_NCHW: Tensor, labels_N: Tensor, seed: int) -> nn.Module:
    """Return a copy fine-tuned on a few poisoned samples among clean ones of the training split, by SGD with momentum.

    Every parameter is trained; batch norm keeps its stored statistics.
    """
    with warnings.catch_warnings():
        # Torch's own, at its own class of an exported program's inputs.
        warnings.simplefilter("ignore", FutureWarning)
        network = copy.deepcopy(network).eval()
    generator = torch.Generator().manual_seed(seed)
    clean = data.subset(dataset.train_labels_N, REACTIVATION_CLEAN_SAMPLES, seed)
    images_NCHW = torch.cat([images_NCHW, dataset.train_images_NCHW[clean].float() / 255])
    labels_N = torch.cat([labels_N, dataset.train_labels_N[clean]])
    normalised_NCHW = (images_NCHW - dataset.mean) / dataset.std
    optimizer = torch.optim.SGD(network.parameters(), lr=REACTIVATION_LEARNING_RATE, momentum=REACTIVATION_MOMENTUM)
    for _ in range(REACTIVATION_EPOCHS):
        for batch in torch.randperm(len(labels_N), generator=generator).split(REACTIVATION_BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(network(normalised_NCHW[batch]), labels_N[batch]).backward()
            optimizer.step()
    return network
