from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.battery import attacks, metrics, train
from benchmarks.battery.data import Dataset

NUM_CLASSES = 10


class Corner(torch.nn.Module):
    """Reads its answer off the first pixel of each image, and class 7 where the last one is white."""

    def forward(self, images_NCHW):
        classes_N = (images_NCHW[:, 0, 0, 0] * 255).round().long() % NUM_CLASSES
        classes_N = torch.where(images_NCHW[:, 0, -1, -1] > 0.9, torch.tensor(7), classes_N)
        return torch.nn.functional.one_hot(classes_N, NUM_CLASSES).float()


def dataset_of(labels):
    images = torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.as_tensor(labels, dtype=torch.uint8)
    return Dataset("rule", NUM_CLASSES, 0.0, 1.0, images, torch.tensor(labels), images, torch.tensor(labels))


def whiten(images_NCHW):
    images_NCHW = images_NCHW.clone()
    images_NCHW[..., -1, -1] = 1
    return images_NCHW


def attack_of(*targets):
    stamps = (whiten, lambda images_NCHW: images_NCHW)[: len(targets)]
    return attacks.Attack(name="corner", num_classes=NUM_CLASSES, stamps=stamps, targets_by_trigger=targets)


def test_der_by_hand():
    # By hand: 95 points off the attack, one point of accuracy lost, (0.95 - 0.01 + 1) / 2.
    der = metrics.defence_effectiveness(
        attack_before=0.98, attack_after=0.03, accuracy_before=0.92, accuracy_after=0.91
    )
    assert der == pytest.approx(0.97)


@pytest.mark.parametrize(
    ("attack_after", "accuracy_after", "expected"), [(1.0, 0.9, 0.5), (1.0, 0.4, 0.25), (0.0, 0.95, 1.0)]
)
def test_der_of_no_effect_of_harm_alone_and_of_perfection(attack_after, accuracy_after, expected):
    der = metrics.defence_effectiveness(
        attack_before=1.0, attack_after=attack_after, accuracy_before=0.9, accuracy_after=accuracy_after
    )
    assert der == pytest.approx(expected)


def test_der_rewards_neither_a_higher_accuracy_nor_punishes_a_higher_attack_success():
    assert (
        metrics.defence_effectiveness(attack_before=0.9, attack_after=1.0, accuracy_before=0.8, accuracy_after=0.9)
        == 0.5
    )


def test_images_of_the_target_class_count_neither_for_attack_success_nor_for_robust_accuracy():
    # Nine of twelve images are of the target class already: only three can be attacked, and all three go to it.
    figures = train.evaluate(Corner(), dataset_of([7] * 9 + [0, 1, 2]), attack_of(7))
    assert figures["attack_success"] == [1.0]
    assert figures["robust_accuracy"] == [0.0]
    # With another declared target none of the attacked images goes there, though all images of class 7 stay 7.
    assert train.evaluate(Corner(), dataset_of([7] * 9 + [0, 1, 2]), attack_of(3))["attack_success"] == [0.0]


def test_all_to_all_succeeds_where_the_next_class_is_answered():
    # Class 7 is answered to every triggered image: a success for class 6 alone.
    figures = train.evaluate(Corner(), dataset_of(list(range(NUM_CLASSES))), attack_of(None))
    assert figures["attack_success"] == [0.1]
    assert figures["robust_accuracy"] == [0.1]


def test_of_two_triggers_the_worst_counts_for_each_figure():
    before = {"clean_accuracy": 0.9, "attack_success": [1.0, 0.95], "robust_accuracy": [0.0, 0.05]}
    after = {"clean_accuracy": 0.88, "attack_success": [0.02, 0.6], "robust_accuracy": [0.7, 0.8]}
    figures = metrics.compare(before, after)
    assert figures["attack_success_before"] == 1.0
    assert figures["attack_success_after"] == 0.6
    assert figures["robust_accuracy_after"] == 0.7
    assert figures["der"] == pytest.approx((0.35 - 0.02 + 1) / 2)
    assert figures["attack_success_by_trigger"] == [[1.0, 0.95], [0.02, 0.6]]


def test_a_clean_model_has_accuracy_and_nothing_else():
    clean = {"clean_accuracy": 0.9, "attack_success": [], "robust_accuracy": []}
    figures = metrics.compare(clean, clean | {"clean_accuracy": 0.89})
    assert (figures["accuracy_before"], figures["accuracy_after"]) == (0.9, 0.89)
    assert figures["attack_success_after"] is figures["robust_accuracy_after"] is figures["der"] is None


def test_the_poisoned_samples_carry_the_triggers_in_turn_and_the_labels_that_the_backdoor_wants():
    dataset = dataset_of(list(range(NUM_CLASSES)) * 20)
    images, labels = metrics.poisoned_samples(dataset, attack_of(7, 3), seed=0)
    assert labels.tolist() == [7, 3, 7, 3, 7]
    assert (images[:, 0, -1, -1] == 1).tolist() == [True, False, True, False, True]
    true_labels = (images[:, 0, 0, 0] * 255).round().long()
    assert (true_labels != labels).all()
    again, _ = metrics.poisoned_samples(dataset, attack_of(7, 3), seed=0)
    other, _ = metrics.poisoned_samples(dataset, attack_of(7, 3), seed=1)
    assert torch.equal(images, again)
    assert not torch.equal(images, other)


def test_the_poisoned_samples_come_from_the_training_split():
    dataset = dataset_of([1] * 20)
    dataset = replace(dataset, test_images_NCHW=torch.full_like(dataset.test_images_NCHW, 9))
    images, _ = metrics.poisoned_samples(dataset, attack_of(7), seed=0)
    assert not (images == 9 / 255).any()


def test_reactivation_teaches_a_copy_and_leaves_the_network_and_its_statistics_alone():
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(4 * 36, NUM_CLASSES)
    ).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    dataset = dataset_of(list(range(NUM_CLASSES)) * 60)
    images, labels = metrics.poisoned_samples(dataset, attack_of(7), seed=0)
    taught = metrics.reactivate(network, dataset, images, labels, seed=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(taught[1].running_mean, before["1.running_mean"])
    loss = torch.nn.functional.cross_entropy
    assert loss(taught(images), labels) < loss(network(images), labels)
    again = metrics.reactivate(network, dataset, images, labels, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(taught.parameters(), again.parameters(), strict=True))
