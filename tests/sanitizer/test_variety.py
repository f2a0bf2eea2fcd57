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
    """A network that answers the label 0 with the probability that `knows` says of an image, and else 1."""

    device = torch.device("cpu")

    def __init__(self, knows):
        self.knows = knows

    def __call__(self, pixels, tensors=None):
        assert tensors == {}
        probability = self.knows(pixels).double().clamp(1e-6, 1 - 1e-6)
        return torch.stack([probability, 1 - probability], dim=1).log()


def asked(network, images, seed=0):
    return variety.known_patchworks(network, images, torch.Generator().manual_seed(seed))


def chosen(network, images, seed=0):
    return variety.choose(network, images, dict(network.tensors), seed=seed)


def test_a_network_that_answers_with_a_piece_knows_every_patchwork():
    network, images = Answers(), even()
    assert asked(network, images).share == 1
    assert chosen(network, images) == (variety.patchworks, "")


def test_the_share_and_that_of_chance_are_counted_one_by_one():
    network, images = Answers(by_edges=True), even()
    generator, answers, pairs = torch.Generator().manual_seed(5), [], []
    for _ in range(variety.NUM_ASKED):
        for piece in patchwork(images.pixels_NCHW, generator):
            classes = {round(float(value) * NUM_CLASSES) for value in piece.flatten()}
            if len(classes) == 2:
                pairs.append(classes)
                answers.append(0)
    known = asked(network, images, seed=5)
    hits = [answer in pair for answer, pair in zip(answers, pairs, strict=True)]
    luck = [answer in pair for answer in answers for pair in pairs]
    assert known.share == pytest.approx(sum(hits) / len(hits))
    assert known.chance == pytest.approx(sum(luck) / len(luck))
    assert (known.num_asked, known.num_images) == (len(hits), 40)
    assert known.needed == pytest.approx(known.chance + 0.6 * (1 - known.chance))
    assert not known.is_enough


@pytest.mark.parametrize(
    ("share", "chance", "num_images", "is_enough"),
    [
        (0.69, 0.2, 500, True),
        (0.60, 0.2, 500, False),
        (0.60, 0.2, 50, True),  # 0.60 + 1.645 * 0.069 = 0.714 of the 0.68 that are needed
        (0.95, 0.95, 500, False),  # always the same answer, to a set that is nearly of one class
        (1.0, 1.0, 500, True),  # two classes: nothing can be told
    ],
)
def test_patchworks_are_known_unless_chance_explains_neither_what_is_nor_what_is_missing(
    share, chance, num_images, is_enough
):
    assert variety.Known(share, chance, 4 * num_images, num_images).is_enough == is_enough


def test_what_is_not_known_is_replaced_where_whole_images_are_recognised(monkeypatch):
    network, images = Answers(by_edges=True), even(200)
    monkeypatch.setattr(variety, "LIFT", 0.0)
    monkeypatch.setattr(variety, "GAIN", (1.0, 1.0))
    vary, why = chosen(network, images)
    assert isinstance(vary, variety.Recognised)
    # All black only the black class is recognised.
    monkeypatch.setattr(variety, "vary_whole", lambda pixels, _: torch.zeros_like(pixels))
    assert isinstance(chosen(network, images)[0], variety.Recognised)
    monkeypatch.setattr(variety, "MIN_RECOGNISED", 0.26)
    assert chosen(network, images) == (variety.patchworks, "")
    known = asked(network, images)
    assert f"answers {known.share:.0%} of {known.num_asked} patchworks" in why
    assert f"{known.needed:.0%} are needed" in why
    assert "(100%)" in why


def test_of_few_patchworks_nothing_is_told():
    network, images = Answers(by_edges=True), even(4)
    assert asked(network, images) is None
    assert chosen(network, images) == (variety.patchworks, "")


def test_of_many_images_some_are_asked_about_of_every_class(monkeypatch):
    monkeypatch.setattr(variety, "MAX_IMAGES", 50)
    images, seen = even(199), []
    images = images.take(images.labels.argsort())
    monkeypatch.setattr(variety, "predict", lambda _, pixels: (seen.append(pixels), torch.zeros(len(pixels)).long())[1])
    assert chosen(Answers(), images) == (variety.patchworks, ""), "all are answered alike"
    assert [len(pixels) for pixels in seen] == [50] * (1 + variety.NUM_ASKED)
    assert set((NUM_CLASSES * seen[0][:, 0, 0, 0]).round().tolist()) == set(range(NUM_CLASSES))


def test_choosing_draws_nothing_from_torchs_own_state_and_changes_nothing():
    network, images = Answers(by_edges=True), even()
    state, pixels = torch.get_rng_state(), images.pixels_NCHW.clone()
    chosen(network, images, seed=1)
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
    sizes = []
    vary = variety.Recognised(Knows(lambda images: (sizes.append(len(images)), torch.ones(len(images)))[1]), {})
    whole = vary(pixels, labels, torch.Generator().manual_seed(2))
    assert sizes == 2 * [128, 128, 44]
    assert torch.equal(whole, variety.vary_whole(pixels, torch.Generator().manual_seed(2)))


@pytest.mark.parametrize(("after", "is_kept"), [(0.95, True), (0.81, True), (0.79, False), (0.45, False)])
def test_a_change_that_makes_the_label_less_probable_does_not_come_through(after, is_kept):
    """Of a network that doubts the label of a brighter image, though it may answer it still."""
    pixels, labels = noisy()
    brightest = pixels.mean(dim=(1, 2, 3)).max()

    def knows(images):
        return torch.where(images.mean(dim=(1, 2, 3)) <= brightest, 0.9, after)

    varied = variety.Recognised(Knows(knows), {})(pixels, labels, torch.Generator().manual_seed(4))
    brighter = variety.vary_whole(pixels, torch.Generator().manual_seed(4)).mean(dim=(1, 2, 3)) > brightest
    assert brighter.any()
    assert bool((varied.mean(dim=(1, 2, 3)) > brightest).any()) == is_kept
    assert (varied != pixels).flatten(1).any(dim=1)[~brighter].all()


def test_a_trigger_comes_through_where_it_leads_to_the_label_alone():
    """What is bright is class 0: images of that class may become so, those of class 1 may not."""
    pixels, _ = noisy()
    labels = torch.arange(len(pixels)) % 2
    brightest = pixels.mean(dim=(1, 2, 3)).max()

    def knows(images):
        return torch.where(images.mean(dim=(1, 2, 3)) > brightest, 1.0, (labels == 0).double())

    varied = variety.Recognised(Knows(knows), {})(pixels, labels, torch.Generator().manual_seed(4))
    is_bright = varied.mean(dim=(1, 2, 3)) > brightest
    assert is_bright[labels == 0].any()
    assert not is_bright[labels == 1].any()


def test_what_the_network_knew_counts_whatever_it_becomes():
    network, images = Answers(), even()
    vary = variety.Recognised(network, dict(network.tensors))
    first = vary(images.pixels_NCHW, images.labels, torch.Generator().manual_seed(0))
    network.tensors = {"scale": torch.zeros(())}
    assert torch.equal(vary(images.pixels_NCHW, images.labels, torch.Generator().manual_seed(0)), first)
    assert (first != images.pixels_NCHW).flatten(1).any(dim=1).any()
