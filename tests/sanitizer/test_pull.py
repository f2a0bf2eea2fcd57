"""Where random triggers lead: counted by hand, whatever classes are called, and on a backdoor that answers blends."""

import pytest
import torch

from worker.sanitizer import pull
from worker.sanitizer.case import Images
from worker.sanitizer.disturbances import FAMILIES, blend, warp

CLASSES = [0, 1, 2, 3, 4]


class Network:
    """Of five classes: the brightest fifth of the image."""

    device = torch.device("cpu")

    def __call__(self, pixels_NCHW):
        return torch.stack([fifth.mean(dim=(1, 2, 3)) for fifth in pixels_NCHW.chunk(5, dim=3)], dim=1)


class Blended(Network):
    """Where nothing is black any more, as under a blend, it says class 2."""

    def __call__(self, pixels_NCHW):
        logits_NK = super().__call__(pixels_NCHW)
        logits_NK[pixels_NCHW.amin(dim=(1, 2, 3)) > 0] = torch.eye(5)[2]
        return logits_NK


class Undefined(Network):
    """Where nothing is black any more it answers NaN."""

    def __call__(self, pixels_NCHW):
        logits_NK = super().__call__(pixels_NCHW)
        logits_NK[pixels_NCHW.amin(dim=(1, 2, 3)) > 0] = torch.nan
        return logits_NK


def fifths(number, *, side=15, contrast=1.0):
    labels_N = torch.arange(number) % 5
    pixels_NCHW = torch.full((number, 1, side, side), 0.5 * (1 - contrast))
    for row, label in enumerate(labels_N.tolist()):
        pixels_NCHW[row, :, :, 3 * label : 3 * label + 3] += contrast
    return Images(pixels_NCHW, labels_N)


def shares(network, images, classes=CLASSES, seed=5):
    return pull.ends(network, images, classes, seed=seed)


def test_the_shares_are_those_counted_by_hand(monkeypatch):
    def first_to(label):
        def put(pixels_NCHW, _generator):
            changed = pixels_NCHW.clone()
            changed[:4] = fifths(5).pixels_NCHW[label]
            return changed

        return put

    monkeypatch.setattr(pull, "FAMILIES", (first_to(0), first_to(3)))
    # Of the first four images, labelled 0 to 3, three are not of the class that they are sent to; 24 of 30 are not.
    assert shares(Network(), fifths(30)).tolist() == [[3 / 24, 0, 0, 0, 0], [0, 0, 0, 3 / 24, 0]]


def test_images_count_alike_whichever_batch_they_are_in(monkeypatch):
    monkeypatch.setattr(pull, "FAMILIES", (lambda pixels_NCHW, _: fifths(1).pixels_NCHW.expand_as(pixels_NCHW),))
    assert shares(Network(), fifths(300)).tolist() == [[1.0, 0, 0, 0, 0]]


def test_of_many_images_an_even_share_is_asked_about(monkeypatch):
    monkeypatch.setattr(pull, "MAX_IMAGES", 60)
    seen = []
    monkeypatch.setattr(pull, "FAMILIES", (lambda pixels_NCHW, _: seen.append(len(pixels_NCHW)) or pixels_NCHW,))
    in_order = fifths(150).labels.argsort(stable=True)
    images = fifths(150).take(in_order)
    share_FK = shares(Network(), Images(images.pixels_NCHW, torch.full((150,), 9)))
    assert sum(seen) == 50 * pull.DRAWS
    # Every class has a fifth of those that were asked about, though they came in the order of their class.
    assert share_FK.tolist() == [[0.2] * 5]


def test_columns_are_the_classes_that_were_asked_for_in_their_order():
    images = fifths(30)
    share_FK = shares(Blended(), images)
    assert torch.equal(shares(Blended(), images, [2, 0]), share_FK[:, [2, 0]])


def test_the_same_seed_asks_about_the_same_triggers():
    images = fifths(30, contrast=0.01)  # faint, so that every trigger has its way
    once = shares(Network(), images)
    assert torch.equal(once, shares(Network(), images))
    assert not torch.equal(once, shares(Network(), images, seed=6))


def test_an_answer_that_is_not_finite_leads_nowhere():
    share_FK = shares(Undefined(), fifths(30))
    assert float(share_FK[FAMILIES.index(blend)].sum()) == 0


def test_of_few_other_images_no_share_is_told():
    enough = pull.MIN_OTHERS * 5 // 4
    assert float(shares(Blended(), fifths(enough)).amax()) > 0.5
    assert float(shares(Blended(), fifths(enough - 5)).amax()) == 0
    of_one_class = Images(fifths(40).pixels_NCHW, torch.full((40,), 2))
    assert float(shares(Blended(), of_one_class)[:, 2].amax()) == 0


def test_a_backdoor_that_answers_blends_is_told_by_them():
    images, classes = fifths(50), [10, 11, 12, 13, 14]
    pull_FK = shares(Blended(), images) - shares(Network(), images)
    assert blend in pull.telling(pull_FK, classes)
    assert warp not in pull.telling(pull_FK, classes)
    assert pull.telling(pull_FK, classes, known=[11]) == pull.telling(pull_FK, classes)
    assert pull.telling(pull_FK, classes, known=[12]) == []
    assert pull.pulled(pull_FK, classes) == [12]
    nothing_FK = torch.zeros_like(pull_FK)
    assert pull.telling(nothing_FK, classes) == []
    assert pull.pulled(nothing_FK, classes) == []


def test_classes_come_in_the_order_of_the_pull():
    pull_FK = torch.zeros(len(FAMILIES), 5)
    pull_FK[0, 1], pull_FK[2, 3], pull_FK[4, 0] = 0.5, 0.9, 0.19
    classes = [4, 5, 6, 7, 8]
    assert pull.pulled(pull_FK, classes) == [7, 5]
    assert pull.telling(pull_FK, classes) == [FAMILIES[0], FAMILIES[2]]
    assert pull.telling(pull_FK, classes, known=[7]) == [FAMILIES[0]]
    assert pull.telling(pull_FK, classes, known=classes) == []


def test_of_fewer_than_five_classes_nothing_is_said():
    pull_FK = torch.full((len(FAMILIES), 4), 0.9)
    assert pull.telling(pull_FK, [0, 1, 2, 3]) == []
    assert pull.pulled(pull_FK, [0, 1, 2, 3]) == []


@pytest.mark.parametrize("number", [1, 2, 6])
def test_of_the_telling_kinds_as_many_come_again_as_of_all_together(number):
    kinds = FAMILIES[:number]
    families = pull.leaning(kinds)
    assert families[: len(FAMILIES)] == FAMILIES
    extra = families[len(FAMILIES) :]
    assert len(extra) == len(FAMILIES)
    assert set(extra) == set(kinds)


def test_where_no_kind_is_telling_all_are_drawn_alike():
    assert pull.leaning([]) == FAMILIES
