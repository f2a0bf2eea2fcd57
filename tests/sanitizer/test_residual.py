"""Triggers that depend on the image: of the stated formula and length, found where they lead."""

import pytest
import torch
from torch.nn import functional

from tests.sanitizer.conftest import SIDE
from worker.sanitizer import residual, trigger
from worker.sanitizer.evaluate import predict
from worker.sanitizer.residual import ResidualSearch
from worker.sanitizer.trigger import ANYWHERE

SHAPE = (1, SIDE, SIDE)


def search(made, targets, *, radius=2.0, seed=0):
    return ResidualSearch(
        made.bench.network, targets, shape_CHW=SHAPE, radius=radius, generator=torch.Generator().manual_seed(seed)
    )


def gone(made, targets, steps, **more):
    found = search(made, targets, **more)
    images = made.bench.repair
    for _ in range(steps):
        found.step(images.pixels_NCHW[:32], images.labels[:32])
    return found


def test_the_change_is_the_two_convolutions_and_the_bias_at_the_stated_length(suspect):
    made = suspect()
    found = gone(made, [0, ANYWHERE, 1], steps=3)
    pixels = made.clean.pixels_NCHW[:6]
    change = found._change(pixels, torch.tensor([2, 0]))
    for place, row in enumerate([2, 0]):
        hidden = functional.conv2d(pixels - 0.5, found._first_T[row], padding=2).clamp_min(0)
        written = functional.conv2d(hidden, found._second_T[row], padding=2) + found._bias_TCHW[row]
        wanted = 2.0 * functional.normalize(written.flatten(1), dim=1).view_as(written)
        torch.testing.assert_close(change[place], wanted)
    assert not torch.allclose(change[0, 0], change[0, 1], atol=1e-3), "it does not depend on the image"


@pytest.mark.parametrize("target", [2, ANYWHERE])
def test_the_search_turns_answers_and_leaves_the_network_alone(suspect, target):
    made = suspect()
    before = made.tensors()
    images = made.bench.select
    other = images.take((images.labels != target).nonzero().flatten())

    def turned(found):
        answers = predict(made.bench.network, found.stamp_randomly(other.pixels_NCHW))
        return float((answers == target if target != ANYWHERE else answers != other.labels).double().mean())

    assert turned(gone(made, [target], steps=80)) > turned(search(made, [target])) + 0.3
    for name, tensor in made.tensors().items():
        assert torch.equal(tensor, before[name])


def test_stamped_images_are_images_within_the_radius_and_at_half_of_it_or_more(suspect):
    made = suspect()
    pixels = 0.5 * torch.ones(64, *SHAPE)
    found = search(made, [0, 1, ANYWHERE], radius=1.0)
    lengths = (found.stamp_randomly(pixels) - pixels).flatten(1).norm(dim=1)
    assert float(lengths.max()) <= 1.0 + 1e-5
    assert float(lengths.min()) >= residual.LEAST_STRENGTH - 1e-5
    strong = search(made, [0], radius=1e3).stamp_randomly(made.clean.pixels_NCHW[:8])
    assert float(strong.min()) >= 0
    assert float(strong.max()) <= 1


def test_one_pass_and_many_give_the_same_triggers(suspect, monkeypatch):
    made = suspect()
    pixels = made.clean.pixels_NCHW[:4]
    together = gone(made, [0, 1, 2], steps=4)._change(pixels, torch.arange(3))
    monkeypatch.setitem(trigger.POSITIONS_AT_ONCE, "cpu", 1)
    torch.testing.assert_close(gone(made, [0, 1, 2], steps=4)._change(pixels, torch.arange(3)), together)


def test_the_same_seed_gives_the_same_bits(suspect):
    made = suspect()
    one, other = (gone(made, [1], steps=5, seed=3).stamp_randomly(made.clean.pixels_NCHW[:8]) for _ in range(2))
    assert torch.equal(one, other)
