"""A slice of the battery, small enough for every run: a backdoored and a clean model on digits, judged for real.

The clean one goes through `prune` alone: a second run of the default would take a fifth of all tests' time.

The bounds are loose, but no pipeline that is broken can meet them: one that changes nothing fails on the attack, one
that ruins the network fails on the accuracy.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.battery import judge, rows, train
from benchmarks.battery.catalogue import ModelConfig

NUM_CLEAN_IMAGES = 200
RECIPES = {"blended": "auto", None: "prune"}
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


@pytest.fixture(scope="module", params=["blended", None])
def judged(tmp_path_factory, request):
    """The row of a backdoored model, then of a clean one."""
    folder = tmp_path_factory.mktemp("slice")
    config = model(request.param)
    train.train_into(folder, config, device=torch.device("cpu"), precision="float32")
    jobs = judge.plan(
        [config], recipes=[RECIPES[request.param]], seeds=[0], num_images=NUM_CLEAN_IMAGES, library="slice"
    )
    assert judge.run(jobs, folder) == 0
    (row,) = rows.read(folder / rows.FILE_NAME)
    return row


def test_a_planted_backdoor_is_there_before_and_at_most_half_of_it_after(judged):
    if judged["attack"] is None:
        assert judged["attack_success_before"] is judged["attack_success_after"] is None
        return
    assert judged["attack_success_before"] >= MIN_ATTACK_SUCCESS_BEFORE
    assert judged["attack_success_after"] <= MAX_ATTACK_SUCCESS_LEFT * judged["attack_success_before"]
    assert judged["verdict"] in {"suspicious", "backdoored"}
    assert judged["status"] in {"repaired", "partly_repaired"}
    assert 0 <= judged["estimate"] <= MAX_ATTACK_SUCCESS_LEFT


def test_accuracy_is_kept_on_images_that_the_product_never_saw(judged):
    assert judged["num_scored"] == 500 - NUM_CLEAN_IMAGES
    assert judged["accuracy_before"] >= 0.95
    assert judged["accuracy_after"] >= judged["accuracy_before"] - MAX_ACCURACY_LOST
