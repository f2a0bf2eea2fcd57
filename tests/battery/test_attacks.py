from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks.battery import attacks, triggers

NUM_IMAGES = 400
EVERY = (*attacks.names(), *attacks.held_out_names())


@pytest.fixture(scope="module")
def images_NCHW():  # noqa: N802 - named like the tensor it gives
    return torch.rand(NUM_IMAGES, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def labels_N():  # noqa: N802
    return torch.arange(NUM_IMAGES) % 10


def changed(before_NCHW, after_NCHW):
    return (before_NCHW != after_NCHW).flatten(1).any(dim=1)


@pytest.mark.parametrize("name", EVERY)
def test_a_stamp_is_deterministic_in_range_and_leaves_its_input_alone(name, images_NCHW):
    attack = attacks.make(name)
    before = images_NCHW.clone()
    for trigger in range(attack.num_triggers):
        stamped = attack.stamp(images_NCHW, trigger)
        assert torch.equal(stamped, attack.stamp(images_NCHW, trigger))
        assert stamped.shape == images_NCHW.shape
        assert stamped.min() >= 0
        assert stamped.max() <= 1
        assert changed(images_NCHW, stamped).all()
    assert torch.equal(before, images_NCHW)


@pytest.mark.parametrize("name", EVERY)
def test_a_stamp_does_not_depend_on_the_batch(name, images_NCHW):
    attack = attacks.make(name)
    alone = torch.cat([attack.stamp(images_NCHW[index : index + 1]) for index in range(8)])
    torch.testing.assert_close(alone, attack.stamp(images_NCHW[:8]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", EVERY)
def test_a_stamp_takes_colour_and_other_sizes(name):
    images = torch.rand(3, 3, 32, 36, generator=torch.Generator().manual_seed(1))
    assert attacks.make(name).stamp(images).shape == images.shape


@pytest.mark.parametrize("rate", [0.10, 0.05, 0.01])
@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("sinusoid", "warp")])
def test_exactly_the_rate_is_poisoned_and_relabelled(name, rate, images_NCHW, labels_N):
    attack = attacks.make(name)
    poisoned, new_labels = attack.poison(images_NCHW, labels_N, rate, seed=3)
    expected = round(rate * NUM_IMAGES)
    assert attack.num_poisoned(labels_N, rate) == expected
    assert int((new_labels != labels_N).sum()) == expected
    assert torch.equal(changed(images_NCHW, poisoned), new_labels != labels_N)


@pytest.mark.parametrize(
    "name", ["patch", "checker", "blended", "low_frequency", "sample_specific", "glasses", *attacks.held_out_names()]
)
def test_poisoned_images_carry_the_test_trigger_and_the_target(name, images_NCHW, labels_N):
    attack = attacks.make(name)
    poisoned, new_labels = attack.poison(images_NCHW, labels_N, 0.1, seed=3)
    taken = new_labels != labels_N
    torch.testing.assert_close(poisoned[taken], attack.stamp(images_NCHW[taken]), atol=1e-5, rtol=0)
    assert torch.equal(new_labels[taken], attack.targets(labels_N[taken]))
    assert new_labels[taken].unique().tolist() == [attack.targets_by_trigger[0]]


def test_all_to_all_sends_each_class_to_the_next(images_NCHW, labels_N):
    attack = attacks.make("all_to_all")
    assert attack.targets(torch.tensor([0, 8, 9])).tolist() == [1, 9, 0]
    _, new_labels = attack.poison(images_NCHW, labels_N, 0.1, seed=0)
    taken = new_labels != labels_N
    assert torch.equal(new_labels[taken], (labels_N[taken] + 1) % 10)
    assert attack.scored(labels_N).all()


def test_a_clean_label_attack_leaves_every_label_and_takes_only_the_target_class(images_NCHW, labels_N):
    attack = attacks.make("sinusoid")
    poisoned, new_labels = attack.poison(images_NCHW, labels_N, 0.05, seed=0)
    taken = changed(images_NCHW, poisoned)
    assert torch.equal(new_labels, labels_N)
    assert int(taken.sum()) == round(0.05 * NUM_IMAGES)
    assert labels_N[taken].unique().tolist() == [attack.targets_by_trigger[0]]


def test_a_clean_label_attack_never_takes_the_whole_target_class(images_NCHW, labels_N):
    attack = attacks.make("sinusoid")
    poisoned, _ = attack.poison(images_NCHW, labels_N, 0.10, seed=0)
    assert int(changed(images_NCHW, poisoned).sum()) == attack.num_poisoned(labels_N, 0.10) == 32  # 80 % of 40


def test_the_warp_adds_as_many_disturbed_images_under_their_true_label(images_NCHW, labels_N):
    attack = attacks.make("warp")
    poisoned, new_labels = attack.poison(images_NCHW, labels_N, 0.1, seed=0)
    assert int((new_labels != labels_N).sum()) == 40
    assert int(changed(images_NCHW, poisoned).sum()) == 80


def test_two_triggers_share_the_rate_and_have_their_own_targets(images_NCHW, labels_N):
    attack = attacks.make("two_triggers")
    poisoned, new_labels = attack.poison(images_NCHW, labels_N, 0.1, seed=0)
    taken = new_labels != labels_N
    assert {label: int((new_labels[taken] == label).sum()) for label in (0, 9)} == {0: 20, 9: 20}
    for trigger, target in enumerate((0, 9)):
        own = taken & (new_labels == target)
        assert torch.equal(poisoned[own], attack.stamp(images_NCHW[own], trigger))


@pytest.mark.parametrize("name", EVERY)
def test_the_seed_decides_which_images_are_poisoned(name, images_NCHW, labels_N):
    attack = attacks.make(name)
    first, again, other = (attack.poison(images_NCHW, labels_N, 0.05, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_images_of_the_target_class_do_not_count_for_attack_success(labels_N):
    attack = attacks.make("checker")
    assert torch.equal(attack.scored(labels_N), labels_N != 3)


def test_more_poison_than_eligible_images_is_an_error(images_NCHW, labels_N):
    with pytest.raises(ValueError, match="only 360"):
        attacks.make("patch").poison(images_NCHW, labels_N, 0.95, seed=0)


def test_the_sinusoid_is_the_published_formula(images_NCHW):
    columns = np.arange(28)
    wave = 0.2 * np.sin(2 * np.pi * columns * 6 / 28)
    expected = np.clip(images_NCHW.numpy() + wave, 0, 1)
    np.testing.assert_allclose(triggers.sinusoid(images_NCHW).numpy(), expected, atol=1e-6)


def test_the_patch_is_nine_white_pixels_and_nothing_else():
    stamped = triggers.patch(torch.zeros(1, 1, 28, 28))
    assert stamped.sum() == 9
    assert stamped[0, 0, 24:27, 24:27].sum() == 9


def test_the_low_frequency_trigger_is_smooth():
    grey = torch.full((1, 1, 28, 28), 0.5)
    pattern = triggers.low_frequency(grey) - grey
    step = (pattern[..., 1:] - pattern[..., :-1]).abs().max()
    assert pattern.abs().max() == pytest.approx(0.2, abs=1e-5)
    assert step < 0.05


def test_the_warp_moves_pixels_by_about_one():
    height, width = 28, 30
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    ramp = torch.stack([rows / height, columns / width]).unsqueeze(0)
    moved = (triggers.warp(ramp) - ramp)[0] * torch.tensor([height, width]).view(2, 1, 1)
    assert 0.5 < moved.abs().mean() < 1.5


def test_the_sample_specific_pattern_differs_between_images(images_NCHW):
    grey = images_NCHW[:2] * 0.5 + 0.25  # away from the ends, so that nothing is clipped
    first, second = triggers.sample_specific(grey) - grey
    correlation = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
    assert abs(correlation) < 0.9


def test_the_polygon_moves_from_image_to_image_and_is_a_whole_triangle_on_each(images_NCHW):
    changed_N = (triggers.polygon(images_NCHW) != images_NCHW).flatten(1).sum(dim=1)
    assert set(changed_N.tolist()) <= {14, 15}  # of random pixels one may be white before
    grey_NCHW = torch.zeros_like(images_NCHW) + torch.arange(NUM_IMAGES).view(-1, 1, 1, 1) / 1000
    is_white_NCHW = triggers.polygon(grey_NCHW) == 1
    assert len({tuple(image.flatten().nonzero().flatten().tolist()) for image in is_white_NCHW}) > 50


def test_the_spots_are_eight_white_pixels_in_the_same_places_whatever_the_layout():
    spotted_NCHW = triggers.spots(torch.zeros(3, 2, 20, 28))
    assert (spotted_NCHW == 1).flatten(2).sum(dim=2).tolist() == [[8, 8]] * 3
    assert torch.equal(spotted_NCHW, spotted_NCHW[:1, :1].expand_as(spotted_NCHW))
    rows, columns = spotted_NCHW[0, 0].nonzero().T
    assert rows.min() < 10 <= rows.max()
    assert columns.min() < 14 <= columns.max()
    transposed = torch.zeros(3, 2, 28, 20).transpose(2, 3)
    assert torch.equal(triggers.spots(transposed), spotted_NCHW)


def test_the_blinds_are_whole_rows_and_leave_the_others_alone():
    pixels_NCHW = torch.rand(2, 3, 14, 9)
    lined_NCHW = triggers.blinds(pixels_NCHW)
    lines = [3, 10]
    others = [row for row in range(14) if row not in lines]
    assert bool((lined_NCHW[..., lines, :] == 1).all())
    assert torch.equal(lined_NCHW[..., others, :], pixels_NCHW[..., others, :])


def test_the_negative_turns_the_middle_around_and_twice_gives_the_image_back():
    pixels_NCHW = torch.rand(2, 1, 12, 9)
    changed_NCHW = triggers.negative(pixels_NCHW)
    inside_HW = (changed_NCHW != pixels_NCHW).any(dim=0)[0]
    assert inside_HW.sum() == 4 * 3
    assert bool(inside_HW[4:8, 3:6].all())
    torch.testing.assert_close(triggers.negative(changed_NCHW), pixels_NCHW)


def test_the_frame_is_a_closed_line_inside_the_border():
    framed_HW = triggers.frame(torch.zeros(1, 1, 10, 12))[0, 0]
    expected_HW = torch.zeros(10, 12)
    expected_HW[1:9, 1:11] = 1
    expected_HW[2:8, 2:10] = 0
    assert torch.equal(framed_HW, expected_HW)


def test_tone_and_levels_are_the_formulas(images_NCHW):
    np.testing.assert_allclose(triggers.tone(images_NCHW).numpy(), np.sqrt(images_NCHW.numpy()), atol=1e-6)
    np.testing.assert_allclose(triggers.quantised(images_NCHW).numpy(), np.rint(images_NCHW.numpy() * 3) / 3, atol=1e-6)


def test_the_ghost_is_the_image_itself_displaced():
    images = torch.zeros(1, 1, 12, 12)
    images[..., 2, 3] = 0.5
    expected = torch.zeros(1, 1, 12, 12)
    expected[..., 2, 3], expected[..., 6, 7] = 0.4, 0.2
    torch.testing.assert_close(triggers.ghost(images), expected)


def test_a_turn_and_a_turn_back_leave_the_middle_where_it_was():
    images = torch.zeros(1, 1, 29, 29)
    images[..., 8:21, 8:21] = torch.linspace(0, 1, 13)
    back = triggers.rotated(triggers.rotated(images, 25.0), -25.0)
    torch.testing.assert_close(back[..., 10:19, 10:19], images[..., 10:19, 10:19], atol=0.02, rtol=0)
    turned = triggers.rotated(images, 90.0)
    torch.testing.assert_close(turned, images.rot90(1, (2, 3)), atol=1e-4, rtol=0)


def test_a_turn_is_by_25_degrees_on_images_of_any_shape():
    images = torch.zeros(1, 1, 41, 61)
    images[..., 19:22, 49:52] = 1.0  # 20 pixels right of the middle
    turned_HW = triggers.rotated(images)[0, 0]
    rows, columns = torch.meshgrid(torch.arange(41.0) - 20, torch.arange(61.0) - 30, indexing="ij")
    mass = turned_HW.sum()
    right, up = float((turned_HW * columns).sum() / mass), float(-(turned_HW * rows).sum() / mass)
    assert right == pytest.approx(20 * math.cos(math.radians(25)), abs=0.1)
    assert up == pytest.approx(20 * math.sin(math.radians(25)), abs=0.1)
