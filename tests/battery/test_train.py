from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.battery import attacks, data
from benchmarks.battery import train as battery
from benchmarks.battery.catalogue import ModelConfig, all_models
from worker.sanitizer.architectures import build
from worker.sanitizer.spec import ArchitectureSpec

CPU = torch.device("cpu")
CONFIG = ModelConfig(
    name="tiny",
    architecture="small_vgg",
    options={"width": 8, "batch_norm": True},
    attack="patch",
    rate=0.2,
    num_train=600,
    epochs=6,
    batch_size=50,
    twin="tiny-clean",
)


def silent(line: str) -> None:
    del line


@pytest.mark.usefixtures("bars")
def test_the_same_configuration_gives_the_same_weights():
    config = replace(CONFIG, num_train=200, epochs=1)
    first, second = (
        battery.train(config, device=CPU, precision="float32", report=silent)[0].state_dict() for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    other, _ = battery.train(replace(config, seed=1), device=CPU, precision="float32", report=silent)
    assert not torch.equal(first["classifier.weight"], other.state_dict()["classifier.weight"])


@pytest.mark.usefixtures("bars")
def test_a_trained_model_is_cached_with_what_is_needed_to_build_it_again(tmp_path, capsys):
    record = battery.train_into(tmp_path / "cache", CONFIG, device=CPU, precision="float32")
    cached = battery.read_record(tmp_path / "cache", CONFIG)
    assert cached == json.loads(json.dumps(record))
    assert cached["num_poisoned"] == 120
    assert capsys.readouterr().out.count("epoch") == CONFIG.epochs
    rebuilt = build(ArchitectureSpec(**cached["model"]["architecture"]))
    rebuilt.load_state_dict(load_file(tmp_path / "cache" / f"{CONFIG.key}.safetensors"))
    figures = battery.evaluate(rebuilt, data.load(CONFIG.dataset), attacks.make("patch"))
    assert figures["clean_accuracy"] == cached["clean_accuracy"] > 0.9
    assert figures["attack_success"] == cached["attack_success"]
    assert cached["admitted"] is False
    assert "not trained" in cached["reason"]


def record_of(config: dict, accuracy: float, success: list[float]) -> dict:
    base = {"dataset": "fashion_mnist", "attack": "patch", "twin": "t"}
    return {"config": base | config, "clean_accuracy": accuracy, "attack_success": success}


@pytest.mark.parametrize(
    ("attack", "accuracy", "success", "admitted"),
    [
        ("patch", 0.90, [0.90], True),
        ("patch", 0.90, [0.8999], False),
        ("patch", 0.8999, [1.0], False),
        ("two_triggers", 0.92, [1.0, 0.5], False),
        ("sinusoid", 0.92, [0.81], True),
        ("sinusoid", 0.92, [0.79], False),
        ("all_to_all", 0.92, [0.85], True),
    ],
)
def test_a_backdoored_model_is_admitted_by_its_worst_trigger_and_its_clean_twin(attack, accuracy, success, admitted):
    twin = {"clean_accuracy": 0.92}
    assert battery.admit(record_of({"attack": attack}, accuracy, success), twin)[0] is admitted


def test_a_clean_model_is_admitted_by_its_accuracy():
    assert battery.admit(record_of({"attack": None}, 0.915, []), None) == (True, "")
    admitted, reason = battery.admit(record_of({"attack": None}, 0.5, []), None)
    assert not admitted
    assert "0.5" in reason


def test_every_twin_precedes_its_models_and_every_name_and_key_is_its_own():
    models = all_models()
    assert len({config.name for config in models}) == len({config.key for config in models}) == len(models)
    seen: set[str] = set()
    for config in models:
        assert config.twin is None or config.twin in seen
        seen.add(config.name)


def test_the_battery_holds_every_attack_at_every_rate_and_two_dozen_clean_models():
    models = [config for config in all_models() if config.dataset == "fashion_mnist"]
    assert sum(config.attack is None for config in models) >= 24
    named = [config for config in models if config.attack in attacks.names()]
    planted = [(str(config.options), config.attack, config.rate) for config in named]
    assert len(planted) == len(set(planted)) == 3 * len(attacks.names()) * 3


def test_a_held_out_model_differs_from_every_other_backdoored_one_in_attack_seed_and_width():
    planted = [config for config in all_models() if config.attack and config.dataset == "fashion_mnist"]
    held_out = [config for config in planted if config.attack in attacks.held_out_names()]
    assert {config.attack for config in held_out} == set(attacks.held_out_names())
    for config in held_out:
        others = [other for other in planted if other not in held_out]
        assert not any(
            other.attack == config.attack or other.seed == config.seed or other.options == config.options
            for other in others
        )


def test_a_changed_field_changes_the_key():
    assert replace(CONFIG, epochs=4).key != CONFIG.key
    assert CONFIG.key.startswith("tiny-")


def test_flips_and_shifts_move_pixels_and_change_no_value():
    images = torch.arange(2 * 28 * 28, dtype=torch.float32).view(2, 1, 28, 28)
    moved = battery._augment(images, replace(CONFIG, shift_pixels=1), torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    assert set(moved.flatten().tolist()) <= set(images.flatten().tolist())
    offset = int(moved[0, 0, 10, 10] - images[0, 0, 10, 10])
    assert offset in {28 * down + right for down in (-1, 0, 1) for right in (-1, 0, 1)}
    flipped = battery._augment(images, replace(CONFIG, flip=True), torch.Generator().manual_seed(1))
    assert all(torch.equal(a, b) or torch.equal(a, b.flip(2)) for a, b in zip(flipped, images, strict=True))


def test_listing_trains_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(battery.CACHE_VARIABLE, str(tmp_path / "cache"))
    assert battery.main(["--list", "--only", "resnet-*-10pc-*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert all(line.endswith("not trained") for line in lines)
    assert not (tmp_path / "cache").exists()


def test_a_pattern_that_matches_nothing_is_an_error(capsys):
    assert battery.main(["--list", "--only", "nothing-like-this"]) == 2
    assert "no model matches" in capsys.readouterr().err


def test_a_model_without_a_record_counts_as_not_trained(tmp_path):
    config, other = all_models()[:2]
    (tmp_path / f"{config.key}.json").write_text(json.dumps({"key": config.key}))
    (tmp_path / f"{other.key}.safetensors").write_bytes(b"")
    assert battery.read_record(tmp_path, config) == {"key": config.key}
    assert battery.read_record(tmp_path, other) is None
