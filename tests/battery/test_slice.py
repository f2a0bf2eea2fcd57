"""A slice of the battery, small enough for every run: a backdoored and a clean model on digits, judged for real.

The bounds are loose, but no pipeline that is broken can meet them: one that changes nothing fails on the attack, one
that ruins the network fails on the accuracy.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.battery import judge, rows, train
from benchmarks.battery.catalogue import ModelConfig

NUM_CLEAN_IMAGES = 200
RECIPE = "auto"
MIN_ATTACK_SUCCESS_BEFORE = 0.90
MAX_ATTACK_SUCCESS_LEFT = 0.5
MAX_ACCURACY_LOST = 0.06


def model(attack):
    return ModelConfig(
        name=f"slice-{attack or 'clean'}",
        dataset="digits",
        architecture="small_vgg",
        options={"width": 8, "batch_norm": True},
        attack=attack,
        rate=0.10 if attack else 0.0,
        num_train=1100,
        epochs=15,
        batch_size=64,
    )


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """The row of each attack, None for the clean model."""
    folder = tmp_path_factory.mktemp("slice")
    configs = [model(None), model("blended")]
    for config in configs:
        train.train_into(folder, config, device=torch.device("cpu"), precision="float32")
    jobs = judge.plan(configs, recipes=[RECIPE], seeds=[0], num_images=NUM_CLEAN_IMAGES, library="slice")
    assert judge.run(jobs, folder) == 0
    return {row["attack"]: row for row in rows.read(folder / rows.FILE_NAME)}


def test_a_planted_backdoor_is_there_before_and_at_most_half_of_it_after(judged):
    row = judged["blended"]
    assert row["attack_success_before"] >= MIN_ATTACK_SUCCESS_BEFORE
    assert row["attack_success_after"] <= MAX_ATTACK_SUCCESS_LEFT * row["attack_success_before"]


@pytest.mark.parametrize("attack", [None, "blended"])
def test_accuracy_is_kept_on_images_that_the_product_never_saw(judged, attack):
    row = judged[attack]
    assert row["num_scored"] == 500 - NUM_CLEAN_IMAGES
    assert row["accuracy_before"] >= 0.95
    assert row["accuracy_after"] >= row["accuracy_before"] - MAX_ACCURACY_LOST
