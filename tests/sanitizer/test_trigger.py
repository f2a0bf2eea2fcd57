"""Synthesised triggers: small where a backdoor is, within their bounds, repeatable, and the network is left alone."""

import pytest
import torch

from worker.sanitizer import trigger as triggers
from worker.sanitizer.trigger import ANYWHERE, Inversion, Triggers, success, synthesise

SHAPE = (1, 12, 12)


def make(made, family, *, targets=(0, 1, 2, 3), steps=20, radius=0.0, seed=0, labels=True):
    images = made.bench.repair
    return synthesise(
        made.bench.network, images.pixels_NCHW, images.labels if labels else None, targets, family=family,
        steps=steps, batch_size=16, radius=radius, generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip


def test_the_planted_patchs_class_has_the_smallest_mask_and_the_mask_works(suspect, planted):
    made = suspect()
    found = make(made, "mask", steps=300)
    size, select = found.size(), made.bench.select
    assert int(size.argmin()) == planted.target
    assert float(size[planted.target]) < 0.9 * float(size.sort().values[1])
    assert float(success(made.bench.network, found, select.pixels_NCHW, select.labels)[planted.target]) > 0.75


@pytest.mark.parametrize(("family", "radius", "order"), [("linf", 0.07, float("inf")), ("l2", 0.9, 2.0)])
def test_a_perturbation_stays_within_its_norm_and_uses_it(suspect, family, radius, order):
    found = make(suspect(), family, steps=60, radius=radius)
    norms = torch.linalg.vector_norm(found.pattern_TCHW.flatten(1), ord=order, dim=1)
    assert bool((norms <= radius * (1 + 1e-5)).all())
    assert float(norms.max()) > 0.8 * radius, "a bound that is never approached bounds nothing"
    torch.testing.assert_close(found.size(), norms)


def test_a_masks_size_stays_within_each_triggers_own_bound(suspect):
    made = suspect()
    bounds = torch.tensor([2.0, 500.0, 5.0])
    search = Inversion(
        made.bench.network, [0, 1, 2], family="mask", shape_CHW=SHAPE, max_size_T=bounds,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    for _ in range(30):
        search.step(made.bench.repair.pixels_NCHW[:32], made.bench.repair.labels[:32])
        assert bool((search.triggers().size() <= bounds * (1 + 1e-5)).all())
    free = make(made, "mask", targets=(0, 1, 2))
    weak = free.bounded(torch.tensor([1.0, 1e6, 2.0]))
    torch.testing.assert_close(weak.size(), torch.tensor([1.0, float(free.size()[1]), 2.0]))
    assert torch.equal(weak.pattern_TCHW, free.pattern_TCHW)


@pytest.mark.parametrize(("family", "radius"), [("mask", 0.0), ("linf", 0.9), ("l2", 30.0)])
def test_a_stamped_image_stays_an_image(suspect, family, radius):
    made = suspect()
    found = make(made, family, radius=radius)
    pixels = made.clean.pixels_NCHW[:8]
    everything = found.stamp_all(pixels)
    assert everything.shape == (4, 8, *SHAPE)
    assert float(everything.min()) >= 0
    assert float(everything.max()) <= 1
    for which in range(4):
        assert torch.equal(found.stamp(pixels, which), everything[which])


def test_a_mask_mixes_the_image_with_its_pattern():
    amount = torch.zeros(1, 1, *SHAPE[1:])
    amount[..., 0, 0], amount[..., 0, 1] = 1.0, 0.25
    found = Triggers("mask", torch.tensor([0]), amount, torch.full((1, *SHAPE), 0.8))
    seen = found.stamp(torch.full((2, *SHAPE), 0.4), 0)
    assert seen[0, 0, 0, :3].tolist() == pytest.approx([0.8, 0.75 * 0.4 + 0.25 * 0.8, 0.4])
    assert found.size().tolist() == [1.25]


@pytest.mark.parametrize(("family", "radius"), [("mask", 0.0), ("linf", 0.1), ("l2", 1.0)])
def test_the_same_seed_gives_the_same_triggers_whatever_torchs_own_generator(suspect, family, radius):
    made, results = suspect(), []
    for torchs, seed in ((1, 3), (2, 3), (2, 4)):
        torch.manual_seed(torchs)
        results.append(make(made, family, radius=radius, seed=seed))
    assert torch.equal(results[0].pattern_TCHW, results[1].pattern_TCHW)
    assert torch.equal(results[0].amount_T1HW, results[1].amount_T1HW)
    assert not torch.equal(results[0].pattern_TCHW, results[2].pattern_TCHW)


@pytest.mark.parametrize(("family", "radius"), [("mask", 0.0), ("l2", 1.0)])
def test_the_network_keeps_its_bits_and_its_gradients(suspect, family, radius):
    made = suspect()
    before = made.tensors()
    found = make(made, family, radius=radius)
    success(made.bench.network, found, made.clean.pixels_NCHW, made.clean.labels)
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.tensors().items())
    parameters = made.bench.network.parameters()
    assert parameters
    assert all(parameter.requires_grad and parameter.grad is None for parameter in parameters.values())


def test_success_leaves_the_target_class_out_unless_there_are_no_labels(suspect):
    made = suspect()
    harmless = Triggers("linf", torch.tensor([0, 1]), torch.ones(2, 1, 12, 12), torch.zeros(2, *SHAPE))
    pixels, labels = made.clean.pixels_NCHW, made.clean.labels
    assert bool((success(made.bench.network, harmless, pixels, labels) < 0.05).all())
    assert bool((success(made.bench.network, harmless, pixels, None) > 0.2).all())


def test_a_trigger_that_may_lead_anywhere_leads_away_from_the_label(suspect):
    made = suspect()
    found = make(made, "mask", targets=(ANYWHERE, 1), steps=150)
    select, network = made.bench.select, made.bench.network
    shares = success(network, found, select.pixels_NCHW, select.labels)
    answers = network(found.stamp(select.pixels_NCHW, 0)).argmax(dim=1)
    assert float(shares[0]) == pytest.approx(float((answers != select.labels).double().mean()))
    assert float(shares[0]) > 0.5
    with pytest.raises(AssertionError):
        success(network, found, select.pixels_NCHW, None)


def test_a_search_begins_where_it_is_told_to(suspect):
    made = suspect()
    found = make(made, "mask", targets=(0, 1))
    search = Inversion(
        made.bench.network, [0, 1], family="mask", shape_CHW=SHAPE, start=found,
        generator=torch.Generator().manual_seed(9),
    )  # fmt: skip
    begun = search.triggers()
    torch.testing.assert_close(begun.amount_T1HW, found.amount_T1HW, atol=2e-4, rtol=0)
    torch.testing.assert_close(begun.pattern_TCHW, found.pattern_TCHW, atol=2e-4, rtol=0)
    search.step(made.bench.repair.pixels_NCHW[:32], made.bench.repair.labels[:32])
    assert not torch.equal(search.triggers().pattern_TCHW, begun.pattern_TCHW)


def test_a_search_may_begin_half_open_and_still_finds_the_planted_class(suspect, planted):
    made = suspect()
    images, settings = made.bench.repair, {"family": "mask", "half_open": True}
    generator = torch.Generator().manual_seed(0)
    begun = Inversion(made.bench.network, [0] * 50, shape_CHW=SHAPE, generator=generator, **settings).triggers()
    assert float(begun.amount_T1HW.mean()) == pytest.approx(0.5, abs=0.02)
    found = synthesise(
        made.bench.network, images.pixels_NCHW, images.labels, [0, 1, 2, 3] * 2, steps=200, batch_size=8,
        generator=generator, **settings,
    )  # fmt: skip
    assert int(found.size().view(2, 4).amin(dim=0).argmin()) == planted.target


@pytest.mark.parametrize("family", ["mask", "l2"])
def test_a_search_does_not_depend_on_how_many_triggers_go_through_the_network_at_once(suspect, monkeypatch, family):
    def found():
        return make(suspect(), family, steps=3, radius=1.0)

    whole = found()
    monkeypatch.setattr(triggers, "POSITIONS_AT_ONCE", {"cpu": 3 * 16 * SHAPE[1] * SHAPE[2]})
    in_parts = found()
    torch.testing.assert_close(in_parts.pattern_TCHW, whole.pattern_TCHW, atol=1e-4, rtol=0)
    torch.testing.assert_close(in_parts.amount_T1HW, whole.amount_T1HW, atol=1e-4, rtol=0)


def test_joined_triggers_are_all_there_in_order(suspect):
    found = make(suspect(), "mask")
    again = found.take([0, 1]).join(found.take([2, 3]))
    assert torch.equal(again.targets_T, found.targets_T)
    assert torch.equal(again.amount_T1HW, found.amount_T1HW)
    assert torch.equal(again.pattern_TCHW, found.pattern_TCHW)


def test_success_does_not_depend_on_how_images_are_batched(suspect, monkeypatch):
    made = suspect()
    found = make(made, "mask", targets=(0, ANYWHERE))
    images = made.bench.select
    whole = success(made.bench.network, found, images.pixels_NCHW, images.labels)
    monkeypatch.setattr(triggers, "SUCCESS_BATCH", 7)
    torch.testing.assert_close(success(made.bench.network, found, images.pixels_NCHW, images.labels), whole)


def test_a_bounded_search_that_begins_from_triggers_stays_within_their_bounds(suspect):
    made = suspect()
    found, images = make(made, "mask", targets=(0, 1)), made.bench.repair
    again = synthesise(
        made.bench.network, images.pixels_NCHW, images.labels, [0, 1], family="mask", steps=10, batch_size=16,
        max_size_T=found.size() / 2, start=found, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert bool((again.size() <= found.size() / 2 * (1 + 1e-5)).all())
