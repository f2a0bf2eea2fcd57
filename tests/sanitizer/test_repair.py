"""Unlearning: the loss it descends, what it removes, what stays as it is."""

import pytest
import torch
from torch.nn import functional

from tests.sanitizer.conftest import TARGET
from worker.sanitizer import repair
from worker.sanitizer.recipes.rounds import SMALL_MASKS
from worker.sanitizer.repair import Course, chances, interpolate, snapshot, stamp_randomly, unlearn
from worker.sanitizer.residual import ResidualSearch
from worker.sanitizer.trigger import Triggers, synthesise
from worker.sanitizer.variety import patchworks

COURSE = Course(
    anchor_weight=7.0, trigger_weight=3.0, random_weight=5.0, residual_weight=2.0, patchwork=True, batch_size=16,
    search_batch=8, temperature=2.0, mirrored=True, rate_share=0.5,
)  # fmt: skip


def searched(bench, targets, steps):
    return synthesise(
        bench.network, bench.repair.pixels_NCHW, bench.repair.labels, targets, family="mask", steps=steps,
        batch_size=16, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


def unlearnt(bench, start, *, course, steps, **more):
    unlearn(
        bench.network, bench.repair, start, 1.5 * start.size(), course, steps=steps,
        generator=torch.Generator().manual_seed(1), **more,
    )  # fmt: skip


def test_the_first_step_descends_the_stated_loss(suspect, monkeypatch):
    """Adam's first step goes by the rate along the sign of the gradient, of whatever size it is."""
    made, twin = suspect(), suspect().bench.network
    network, before = made.bench.network, made.tensors()
    # One that is not f, so that its divergence is felt.
    anchor = {name: 0.9 * tensor if tensor.is_floating_point() else tensor for name, tensor in before.items()}
    given, seen = {}, {}

    def spied(name):
        made_by = getattr(repair, name)

        def spy(*arguments):
            seen[name] = made_by(*arguments)
            given[name] = arguments
            return seen[name]

        monkeypatch.setattr(repair, name, spy)

    # The schedule ends at a 250,000th of the rate, and its end is its first step here.
    monkeypatch.setattr(repair, "RATE", 1e3)
    for name in ("stamp_randomly", "disturb", "shift"):
        spied(name)

    def vary(pixels, labels, generator, *, mirrored=False):
        given["vary"], seen["vary"] = (pixels, labels, mirrored), patchworks(pixels, labels, generator)
        return seen["vary"]

    stamp = ResidualSearch.stamp_randomly

    def stamped_by_residual(search, pixels):
        seen["residual"] = stamp(search, pixels)
        return seen["residual"]

    monkeypatch.setattr(ResidualSearch, "stamp_randomly", stamped_by_residual)
    start = searched(made.bench, [1, 2], steps=3)
    unlearnt(made.bench, start, course=COURSE, steps=1, anchor=anchor, vary=vary)
    # What the suspect is asked about is pieced together of clean images as they are; only labels go with shifted ones.
    whole, labels, is_mirrored = given["vary"]
    assert is_mirrored
    images = made.bench.repair
    is_same = (whole.unsqueeze(1) == images.pixels_NCHW).flatten(2).all(dim=2)
    assert bool(is_same.any(dim=1).all())
    assert torch.equal(labels, images.labels[is_same.int().argmax(dim=1)])
    assert given["shift"][0] is whole
    assert given["stamp_randomly"][2] is given["disturb"][0] is seen["vary"]

    parameters = twin.parameters()
    pieced = seen["vary"]
    weights = {"vary": 7, "stamp_randomly": 3, "disturb": 5, "residual": 2}
    with torch.no_grad():
        kept = (twin(pieced, anchor) / 2).softmax(dim=1)
    loss = functional.nll_loss(torch.log_softmax(twin(seen["shift"]), dim=1), labels)
    for name, weight in weights.items():
        divergence = (kept * (kept.log() - torch.log_softmax(twin(seen[name]) / 2, dim=1))).sum(dim=1).mean()
        loss = loss + 2 * weight * divergence
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    moved = network.parameters()
    checked = 0
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        clear = gradient.abs() > 1e-4
        step = moved[name].detach() - parameter.detach()
        assert torch.equal(step.sign()[clear], -gradient.sign()[clear]), name
        assert step.abs()[clear].numpy() == pytest.approx(0.5 * 1e3 / 250_000, rel=0.02)
        checked += int(clear.sum())
    assert checked > 500


def test_masks_are_drawn_in_inverse_proportion_to_their_size():
    amounts = torch.tensor([0.0, 0.2, 0.1, 0.4]).view(4, 1, 1, 1).expand(4, 1, 5, 2)  # 0, 2, 1 and 4 pixels
    triggers = Triggers("mask", torch.arange(4), amounts, torch.ones(4, 1, 5, 2))
    assert chances(triggers).tolist() == pytest.approx([size / 11.75 for size in (10.0, 0.5, 1.0, 0.25)])
    chance = chances(triggers.take([1, 2, 3]))
    stamped = stamp_randomly(
        triggers.take([1, 2, 3]), chance, torch.zeros(7000, 1, 5, 2), torch.Generator().manual_seed(0)
    )
    sizes = stamped.flatten(1).sum(dim=1).round()
    counts = [int((sizes == size).sum()) for size in (2, 1, 4)]
    assert sum(counts) == 7000
    assert counts == pytest.approx([2000, 4000, 1000], rel=0.1)


def test_a_mask_whose_search_diverged_is_drawn_seldom_and_breaks_nothing(suspect):
    made = suspect()
    start = searched(made.bench, [1, 2], steps=1)
    start.amount_T1HW[0] = 0.1
    start.amount_T1HW[1] = torch.nan
    assert chances(start).tolist() == pytest.approx([10 / 11, 1 / 11])
    unlearnt(made.bench, start, course=COURSE, steps=2, anchor=snapshot(made.bench.network))


def test_the_planted_backdoor_is_unlearnt_and_accuracy_kept(suspect):
    made = suspect()
    before = snapshot(made.bench.network)
    accuracy, attack = made.scores()
    assert attack > 0.95
    start = searched(made.bench, [TARGET], steps=100)
    unlearnt(made.bench, start, course=SMALL_MASKS, steps=200, anchor=before)
    after, left = made.scores()
    assert left < 0.3
    assert after > accuracy - 0.05


def test_a_course_on_clean_images_alone_makes_no_others(suspect, monkeypatch):
    made = suspect()
    for name in ("patchworks", "disturb", "ResidualSearch"):
        monkeypatch.setattr(repair, name, lambda *_, name=name, **__: pytest.fail(f"{name} was called"))
    start = searched(made.bench, [1], steps=2)
    course = Course(anchor_weight=5.0, trigger_weight=1.0, patchwork=False, batch_size=16, search_batch=8)
    vary = repair.patchworks
    unlearnt(made.bench, start, course=course, steps=2, anchor=snapshot(made.bench.network), vary=vary)


def test_pruned_channels_stay_silent_while_the_network_learns(suspect):
    made = suspect()
    mask = made.without(1)
    before = snapshot(made.bench.network)
    start = searched(made.bench, [1], steps=2)
    unlearnt(made.bench, start, course=COURSE, steps=3, anchor=before, mask=mask)
    assert made.silent(mask)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in made.tensors().items())


def test_interpolating_goes_the_share_of_the_way(suspect):
    made = suspect()
    before = snapshot(made.bench.network)
    after = {name: tensor + 2 if tensor.is_floating_point() else tensor for name, tensor in before.items()}
    interpolate(made.bench.network, before, after, 0.25)
    for name, tensor in made.tensors().items():
        wanted = before[name] + 0.5 if tensor.is_floating_point() else before[name]
        torch.testing.assert_close(tensor, wanted)
