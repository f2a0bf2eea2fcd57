from __future__ import annotations

from collections import Counter

from benchmarks.battery import attacks
from benchmarks.battery.calibration import is_calibration
from benchmarks.battery.catalogue import all_models

HELD_OUT = [config for config in all_models() if config.attack in attacks.held_out_names()]
MODELS = [config for config in all_models() if config.dataset == "fashion_mnist" and config not in HELD_OUT]


def test_every_attack_lies_on_both_sides_at_every_rate_and_so_do_clean_models_of_every_architecture():
    for attack in attacks.names():
        for rate in (0.10, 0.05, 0.01):
            sides = {is_calibration(m.name) for m in MODELS if m.attack == attack and m.rate == rate}
            assert sides == {True, False}, (attack, rate)
    for architecture in {(m.architecture, m.options.get("batch_norm")) for m in MODELS}:
        kind = [m for m in MODELS if m.attack is None and (m.architecture, m.options.get("batch_norm")) == architecture]
        assert {is_calibration(m.name) for m in kind} == {True, False}, architecture


def test_each_side_holds_about_half_of_the_clean_and_of_the_backdoored_models():
    sides = Counter((m.attack is None, is_calibration(m.name)) for m in MODELS)
    assert abs(sides[True, True] - sides[True, False]) <= 2
    assert abs(sides[False, True] - sides[False, False]) <= 2


def test_models_that_differ_in_the_poisoning_rate_alone_lie_on_one_side():
    for architecture in ("resnet-w16", "vgg-w16", "vgg-nobn-w24"):
        for attack in attacks.names():
            assert len({is_calibration(f"{architecture}-{attack}-{percent}pc-s0") for percent in (10, 5, 1)}) == 1


def test_a_name_of_another_form_has_a_fixed_side_too():
    names = [f"other-{index}" for index in range(200)]
    sides = [is_calibration(name) for name in names]
    assert sides == [is_calibration(name) for name in names]
    assert 60 < sum(sides) < 140


def test_held_out_models_are_never_for_calibration():
    assert len(HELD_OUT) == 2 * len(attacks.held_out_names())
    assert not any(is_calibration(config.name) for config in HELD_OUT)
