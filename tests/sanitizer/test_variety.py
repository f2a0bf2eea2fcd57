"""What stands for clean images: patchworks where the network knows them, or else whole images that it recognises."""

import itertools

import pytest
import torch

from worker.sanitizer import variety
from worker.sanitizer.case import Images
from worker.sanitizer.training import mirror, patchwork

SIDE, NUM_CLASSES = 6, 4


class Answers:
    """The class whose brightness is nearest that of a corner; or class 0 of an image that is not of one brightness."""

    device = torch.device("cpu")

    def __init__(self, *, by_edges=False):
        self.by_edges, self.tensors = by_edges, {"scale": torch.ones(())}

    def __call__(self, pixels, tensors=None):
        corner = pixels[:, 0, 0, 0] * (tensors or self.tensors)["scale"]
        logits = -(corner.unsqueeze(1) - torch.arange(NUM_CLASSES) / NUM_CLASSES).abs()
        if self.by_edges:
            has_edges = pixels.amax(dim=(1, 2, 3)) - pixels.amin(dim=(1, 2, 3)) > 0.01
            logits = torch.where(has_edges.unsqueeze(1), -torch.arange(NUM_CLASSES).float(), logits)
        return logits


def even(number=40):
    labels = torch.arange(number) % NUM_CLASSES
    return Images((labels / NUM_CLASSES).view(-1, 1, 1, 1).expand(-1, 1, SIDE, SIDE).clone(), labels)


def noisy(number=60, shape=(3, SIDE, SIDE)):
    pixels = torch.rand(number, *shape, generator=torch.Generator().manual_seed(3))
    return pixels, torch.zeros(number, dtype=torch.int64)


class Knows:
    """A network that answers the label 0 where `knows` holds of an image, and 1 elsewhere."""

    device = torch.device("cpu")

    def __init__(self, knows):
        self.knows = knows

    def __call__(self, pixels, tensors=None):
        assert tensors == {}
        return torch.stack([self.knows(pixels).float(), torch.full((len(pixels),), 0.5)], dim=1)


def test_a_network_that_answers_with_a_piece_knows_every_patchwork():
    network, images = Answers(), even()
    assert variety.known_share(network, images, seed=0) == 1
    assert variety.choose(network, images, dict(network.tensors), NUM_CLASSES, seed=0) is variety.patchworks


def test_the_share_is_that_of_the_patchworks_of_two_classes_counted_one_by_one():
    network, images = Answers(by_edges=True), even()
    generator, hits, asked = torch.Generator().manual_seed(5), 0, 0
    for _ in range(variety.NUM_ASKED):
        for piece in patchwork(images.pixels_NCHW, generator):
            classes = {round(float(value) * NUM_CLASSES) for value in piece.flatten()}
            if len(classes) == 2:
                asked += 1
                hits += 0 in classes
    share = variety.known_share(network, images, seed=5)
    assert share == hits / asked
    assert 0.3 < share < 0.75
    chosen = variety.choose(network, images, dict(network.tensors), NUM_CLASSES, seed=5)
    assert isinstance(chosen, variety.Recognised)


@pytest.mark.parametrize(("num_classes", "needed"), [(1000, 0.6008), (10, 0.68), (3, 0.8667), (2, 1.0)])
def test_what_chance_would_know_is_not_known(monkeypatch, num_classes, needed):
    for share, is_known in ((needed + 0.001, True), (needed - 0.001, False)):
        monkeypatch.setattr(variety, "known_share", lambda *_, found=share, **__: min(found, 1.0))
        chosen = variety.choose(Answers(), even(), {}, num_classes, seed=0)
        assert (chosen is variety.patchworks) == is_known


def test_of_few_patchworks_nothing_is_told():
    network, images = Answers(by_edges=True), even(4)
    assert variety.known_share(network, images, seed=0) is None
    assert variety.choose(network, images, dict(network.tensors), NUM_CLASSES, seed=0) is variety.patchworks


def test_of_many_images_some_are_asked_about_of_every_class(monkeypatch):
    monkeypatch.setattr(variety, "MAX_IMAGES", 50)
    images, asked = even(199), []
    images = images.take(images.labels.argsort())
    monkeypatch.setattr(variety, "predict", lambda _, pixels: (asked.append(pixels), torch.zeros(len(pixels)))[1])
    assert variety.known_share(Answers(), images, seed=0) is None, "of images that are all answered alike"
    assert [len(pixels) for pixels in asked] == [50] * (1 + variety.NUM_ASKED)
    assert set((NUM_CLASSES * asked[0][:, 0, 0, 0]).round().tolist()) == set(range(NUM_CLASSES))


def test_choosing_draws_nothing_from_torchs_own_state_and_changes_nothing():
    network, images = Answers(by_edges=True), even()
    state, pixels = torch.get_rng_state(), images.pixels_NCHW.clone()
    variety.choose(network, images, dict(network.tensors), NUM_CLASSES, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images.pixels_NCHW, pixels)


def test_patchworks_are_those_of_training_and_mirrored_where_asked_for():
    pixels, labels = noisy(20)

    def drawn():
        return torch.Generator().manual_seed(7)

    assert torch.equal(variety.patchworks(pixels, labels, drawn()), patchwork(pixels, drawn()))
    generator = drawn()
    expected = mirror(patchwork(pixels, generator), generator)
    assert torch.equal(variety.patchworks(pixels, labels, drawn(), mirrored=True), expected)


@pytest.mark.parametrize("shape", [(3, 6, 6), (1, 4, 8)])
def test_a_whole_image_is_turned_mirrored_and_its_channels_exchanged(monkeypatch, shape):
    monkeypatch.setattr(variety, "shift", lambda pixels, *_: pixels)
    monkeypatch.setattr(variety, "GAIN", (1.0, 1.0))
    monkeypatch.setattr(variety, "LIFT", 0.0)
    pixels, _ = noisy(1500, shape)
    varied = variety.vary_whole(pixels, torch.Generator().manual_seed(0))
    seen = set()
    for before, after in zip(pixels, varied, strict=True):
        ways = [
            (turns, mirrored, order)
            for turns in (range(4) if shape[1] == shape[2] else (0, 2))
            for mirrored in (False, True)
            for order in itertools.permutations(range(shape[0]))
            if torch.allclose(
                before[list(order)].rot90(turns, dims=(1, 2)).flip(2) if mirrored
                else before[list(order)].rot90(turns, dims=(1, 2)), after, atol=1e-6,
            )
        ]  # fmt: skip
        assert len(ways) == 1
        seen.add(ways[0])
    assert len(seen) == (48 if shape[0] == 3 else 4)


def test_a_whole_image_is_moved_by_an_eighth_of_its_side_and_tinted_within_bounds():
    pixels = torch.full((500, 1, 32, 32), 0.5)
    pixels[:, :, 15:17, 15:17] = 0.9
    varied = variety.vary_whole(pixels, torch.Generator().manual_seed(0))
    ground, gain = varied[:, 0, 0, 0], (varied.amax(dim=(1, 2, 3)) - varied[:, 0, 0, 0]) / 0.4
    assert (ground - 0.5).abs().max() == pytest.approx(0.1, abs=0.005)
    assert (float(gain.min()), float(gain.max())) == pytest.approx((0.8, 1.2), abs=0.01)
    rows = (varied > varied[:, :, :1, :1] + 0.1).float().amax(dim=(1, 3)).argmax(dim=1)
    assert sorted(set(rows.tolist())) == list(range(11, 20))
    bright = variety.vary_whole(torch.rand(50, 3, 8, 8), torch.Generator().manual_seed(1))
    assert (float(bright.min()), float(bright.max())) == (0, 1)


def test_an_image_that_the_network_knows_no_more_stays_as_it_was():
    pixels, labels = noisy()
    none = variety.Recognised(Knows(lambda images: torch.zeros(len(images))), {})
    assert torch.equal(none(pixels, labels, torch.Generator().manual_seed(2)), pixels)
    every = variety.Recognised(Knows(lambda images: torch.ones(len(images))), {})
    expected = variety.vary_whole(pixels, torch.Generator().manual_seed(2))
    assert torch.equal(every(pixels, labels, torch.Generator().manual_seed(2), mirrored=True), expected)


def test_the_network_is_asked_about_no_more_than_a_batch_at_once():
    pixels, labels = noisy(300)
    asked = []
    vary = variety.Recognised(Knows(lambda images: (asked.append(len(images)), torch.ones(len(images)))[1]), {})
    whole = vary(pixels, labels, torch.Generator().manual_seed(2))
    assert asked == [128, 128, 44]
    assert torch.equal(whole, variety.vary_whole(pixels, torch.Generator().manual_seed(2)))


def test_a_change_that_is_the_trigger_does_not_come_through():
    """Of a network to which a bright image is the trigger no brighter image comes back."""
    pixels, labels = noisy()
    known = pixels.mean(dim=(1, 2, 3)).max()
    varied = variety.Recognised(Knows(lambda images: images.mean(dim=(1, 2, 3)) <= known), {})(
        pixels, labels, torch.Generator().manual_seed(4)
    )
    assert variety.vary_whole(pixels, torch.Generator().manual_seed(4)).mean(dim=(1, 2, 3)).max() > known
    assert varied.mean(dim=(1, 2, 3)).max() <= known
    assert (varied != pixels).flatten(1).any(dim=1).double().mean() > 0.3


def test_what_the_network_knew_counts_whatever_it_becomes():
    network, images = Answers(), even()
    vary = variety.Recognised(network, dict(network.tensors))
    first = vary(images.pixels_NCHW, images.labels, torch.Generator().manual_seed(0))
    network.tensors = {"scale": torch.zeros(())}
    assert torch.equal(vary(images.pixels_NCHW, images.labels, torch.Generator().manual_seed(0)), first)
    assert (first != images.pixels_NCHW).flatten(1).any(dim=1).any()
