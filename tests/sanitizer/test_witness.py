"""What a witness learns and what it does not, and how its statistics are discounted."""

import pytest
import torch

from worker.sanitizer import witness
from worker.sanitizer.case import Images
from worker.sanitizer.trigger import Triggers, success
from worker.sanitizer.witness import areas

SMALL_PATCH = (slice(0, 2), slice(0, 2))


def stripes(number, generator, *, side=12, num_classes=5):
    """Images whose class is where a bright bar lies, with noise."""
    labels_N = torch.arange(number) % num_classes
    pixels_NCHW = 0.3 * torch.rand(number, 1, side, side, generator=generator)
    for row, label in enumerate(labels_N.tolist()):
        pixels_NCHW[row, 0, :, 2 * label : 2 * label + 2] += 0.6
    return Images(pixels_NCHW, labels_N)


class Suspect:
    """Reads the brightest bar; a white corner is class 3, whatever the bar says."""

    device = torch.device("cpu")

    def __call__(self, pixels_NCHW):
        bars_NK = torch.stack([pixels_NCHW[:, 0, 4:, 2 * k : 2 * k + 2].mean(dim=(1, 2)) for k in range(5)], dim=1)
        logits_NK = 30 * bars_NK
        stamped_N = pixels_NCHW[:, 0, *SMALL_PATCH].amin(dim=(1, 2)) > 0.98
        logits_NK[stamped_N] = 20 * torch.eye(5)[3]
        return logits_NK


def patch():
    amount = torch.zeros(1, 1, 12, 12)
    amount[0, 0, *SMALL_PATCH] = 1
    return Triggers("mask", torch.tensor([3]), amount, torch.ones(1, 1, 12, 12))


def test_a_witness_learns_the_classes_and_not_the_backdoor():
    generator = torch.Generator().manual_seed(0)
    images, others = stripes(200, generator), stripes(100, generator)
    steps = []
    made = witness.teach(Suspect(), images, generator=generator, advance=steps.append)
    assert sum(steps) == witness.STEPS
    with torch.no_grad():
        answers_N = made(others.pixels_NCHW).argmax(dim=1)
    assert float((answers_N == others.labels).double().mean()) > 0.95
    assert float(success(Suspect(), patch(), others.pixels_NCHW, others.labels)) == 1.0
    assert float(success(made, patch(), others.pixels_NCHW, others.labels)) < 0.2


def test_the_same_seed_teaches_the_same_witness_and_torchs_own_state_is_left_alone(monkeypatch):
    monkeypatch.setattr(witness, "STEPS", 3)
    images, before = stripes(40, torch.Generator().manual_seed(0)), torch.get_rng_state()
    made = [witness.teach(Suspect(), images, generator=torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        first, second = (one(images.pixels_NCHW) for one in made)
    assert torch.equal(first, second)


@pytest.mark.parametrize("shape_CHW", [(3, 5, 4), (1, 28, 28), (3, 224, 160)])
def test_images_of_any_size_are_seen_at_a_bounded_cost(shape_CHW, monkeypatch):
    monkeypatch.setattr(witness, "STEPS", 1)

    class Even:
        device = torch.device("cpu")

        def __call__(self, pixels_NCHW):
            return pixels_NCHW.new_zeros(len(pixels_NCHW), 7)

    images = Images(torch.rand(6, *shape_CHW, generator=torch.Generator().manual_seed(0)), torch.arange(6))
    made = witness.teach(Even(), images, generator=torch.Generator().manual_seed(0))
    assert made(images.pixels_NCHW).shape == (6, 7)
    assert sum(parameter.numel() for parameter in made.parameters().values()) < 60_000


def test_what_a_line_explains_is_taken_away_and_no_single_class_bends_it():
    natural_K = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    seen_K = 0.5 * natural_K + 9
    assert witness.beyond(natural_K, seen_K).abs().max() < 1e-12
    seen_K[2] += 4
    assert witness.beyond(natural_K, seen_K).tolist() == pytest.approx([0, 0, 4, 0, 0, 0, 0])


def test_it_does_not_matter_in_which_unit_the_natural_statistic_is_shifted():
    generator = torch.Generator().manual_seed(0)
    natural_K, seen_K = torch.rand(2, 9, generator=generator, dtype=torch.float64)
    once = witness.beyond(natural_K, seen_K)
    assert witness.beyond(natural_K + 3, seen_K - 2).tolist() == pytest.approx(once.tolist())
    order = torch.randperm(9, generator=generator)
    assert witness.beyond(natural_K[order], seen_K[order]).tolist() == pytest.approx(once[order].tolist())


@pytest.mark.parametrize(
    "natural",
    [
        [6.0, 5.0, 4.0, 3.0, 2.0, 1.0],  # against the suspect's: no slope below zero
        [2.0] * 6,
        [1.0, 2.0, 3.0, float("nan"), 5.0, 6.0],
    ],
)
def test_a_witness_that_says_nothing_discounts_nothing(natural):
    seen_K = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 7.0], dtype=torch.float64)
    assert witness.beyond(torch.tensor(natural), seen_K).tolist() == (seen_K - seen_K.quantile(0.5)).tolist()


def test_of_few_classes_no_line_is_drawn():
    seen_K = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    assert witness.beyond(seen_K, seen_K).tolist() == (seen_K - seen_K.quantile(0.5)).tolist()


@pytest.mark.parametrize(("side", "reduced"), [(28, 28), (33, 32), (64, 32), (224, 32), (100, 32)])
def test_areas_are_torchs_adaptive_mean(side, reduced):
    images = torch.rand(2, 3, side, 40)
    expected = torch.nn.functional.adaptive_avg_pool2d(images, (reduced, 32))
    torch.testing.assert_close(areas(side, reduced) @ images @ areas(40, 32).T, expected)
