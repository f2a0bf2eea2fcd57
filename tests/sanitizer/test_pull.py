"""Where random triggers lead: counted by hand, whatever classes are called, and on a backdoor that answers blends."""

import pytest
import torch

from worker.sanitizer import pull
from worker.sanitizer.case import Images
from worker.sanitizer.disturbances import FAMILIES, blend, warp


class Network:
    """Of four classes: the brightest quarter of the image."""

    device = torch.device("cpu")

    def __call__(self, pixels_NCHW):
        return torch.stack([quarter.mean(dim=(1, 2, 3)) for quarter in pixels_NCHW.chunk(4, dim=3)], dim=1)


class Blended(Network):
    """Where nothing is black any more, as under a blend, it says class 2."""

    def __call__(self, pixels_NCHW):
        logits_NK = super().__call__(pixels_NCHW)
        logits_NK[pixels_NCHW.amin(dim=(1, 2, 3)) > 0] = torch.eye(4)[2]
        return logits_NK


def quarters(number, *, side=16):
    labels_N = torch.arange(number) % 4
    pixels_NCHW = torch.zeros(number, 1, side, side)
    for row, label in enumerate(labels_N.tolist()):
        pixels_NCHW[row, :, :, 4 * label : 4 * label + 4] = 1.0
    return Images(pixels_NCHW, labels_N)


def test_the_shares_are_those_counted_by_hand(monkeypatch):
    images = quarters(8)

    def first_to(label):
        def put(pixels_NCHW, _generator):
            changed = pixels_NCHW.clone()
            changed[:3] = quarters(4).pixels_NCHW[label]
            return changed

        return put

    monkeypatch.setattr(pull, "FAMILIES", (first_to(0), first_to(3)))
    # Labels 0 1 2 3 0 1 2 3, six of which are not of any one class. The first three go to 0: labels 1 and 2 count.
    share_FK = pull.ends(Network(), images, [0, 1, 2, 3], seed=0)
    assert share_FK.tolist() == [[2 / 6, 0, 0, 0], [0, 0, 0, 3 / 6]]


def test_columns_are_the_classes_that_were_asked_for_in_their_order():
    images = quarters(12)
    share_FK = pull.ends(Blended(), images, [0, 1, 2, 3], seed=5)
    assert torch.equal(pull.ends(Blended(), images, [2, 0], seed=5), share_FK[:, [2, 0]])


def test_the_same_seed_asks_about_the_same_triggers():
    images = quarters(12)
    images = Images(0.5 + 0.01 * images.pixels_NCHW, images.labels)  # faint, so that every trigger has its way
    once = pull.ends(Network(), images, [0, 1, 2, 3], seed=5)
    assert torch.equal(once, pull.ends(Network(), images, [0, 1, 2, 3], seed=5))
    assert not torch.equal(once, pull.ends(Network(), images, [0, 1, 2, 3], seed=6))


def test_a_class_that_has_every_image_is_led_to_by_none():
    images = Images(quarters(8).pixels_NCHW, torch.zeros(8, dtype=torch.int64))
    assert pull.ends(Network(), images, [0], seed=0).tolist() == [[0.0]] * len(FAMILIES)


def test_a_backdoor_that_answers_blends_is_told_by_them():
    images = quarters(40)
    natural_FK = pull.ends(Network(), images, [0, 1, 2, 3], seed=1)
    pull_FK = pull.ends(Blended(), images, [0, 1, 2, 3], seed=1) - natural_FK
    classes = [10, 11, 12, 13]
    assert blend in pull.telling(pull_FK, classes)
    assert warp not in pull.telling(pull_FK, classes)
    assert pull.telling(pull_FK, classes, known=[11]) == pull.telling(pull_FK, classes)
    assert pull.telling(pull_FK, classes, known=[12]) == []
    assert pull.pulled(pull_FK, classes) == [12]
    nothing_FK = torch.zeros_like(pull_FK)
    assert pull.telling(nothing_FK, classes) == []
    assert pull.pulled(nothing_FK, classes) == []


def test_classes_come_in_the_order_of_the_pull():
    pull_FK = torch.zeros(len(FAMILIES), 4)
    pull_FK[0, 1], pull_FK[2, 3], pull_FK[4, 0] = 0.5, 0.9, 0.19
    assert pull.pulled(pull_FK, [4, 5, 6, 7]) == [7, 5]
    assert pull.telling(pull_FK, [4, 5, 6, 7]) == [FAMILIES[0], FAMILIES[2]]
    assert pull.telling(pull_FK, [4, 5, 6, 7], known=[7]) == [FAMILIES[0]]
    assert pull.telling(pull_FK, [4, 5, 6, 7], known=[4, 5, 6, 7]) == []


@pytest.mark.parametrize("number", [1, 2, 6])
def test_half_of_what_is_drawn_is_of_the_telling_kinds_and_none_is_left_out(number):
    kinds = FAMILIES[:number]
    families = pull.leaning(kinds)
    assert families[: len(FAMILIES)] == FAMILIES
    extra = families[len(FAMILIES) :]
    assert len(extra) == len(FAMILIES)
    assert set(extra) == set(kinds)


def test_where_no_kind_is_telling_all_are_drawn_alike():
    assert pull.leaning([]) == FAMILIES
