"""Minibatches, shifts and the sharpness-aware step, against NumPy and by hand."""

from itertools import islice

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from worker.sanitizer.case import Images
from worker.sanitizer.network import from_module
from worker.sanitizer.spec import InputSpec
from worker.sanitizer.training import (
    Schedule,
    fine_tune,
    minibatches,
    mirror,
    patchwork,
    sam_gradients,
    sam_perturbation,
    shift,
)

CPU = torch.device("cpu")


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(50) % 2
    pixels = 0.4 * torch.rand(50, 1, 8, 8, generator=generator) + 0.5 * labels.view(-1, 1, 1, 1)
    return Images(pixels, labels)


@pytest.fixture
def network():
    torch.manual_seed(3)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    return from_module(module, InputSpec(height=8, width=8, mean=(0.5,), std=(0.25,)))


def test_every_image_comes_once_a_pass_and_in_another_order_the_next():
    images = Images(torch.arange(10.0).view(10, 1, 1, 1), torch.arange(10))
    batches = minibatches(images, batch_size=4, generator=torch.Generator().manual_seed(0), device=CPU)
    passes = [torch.cat([labels for _, labels in islice(batches, 3)]) for _ in range(2)]
    assert all(sorted(labels.tolist()) == list(range(10)) for labels in passes)
    assert passes[0].tolist() != passes[1].tolist()


def test_a_patchwork_holds_one_rectangle_of_another_image_in_its_own_place():
    height, width, batch = 5, 8, 64
    own = torch.arange(batch).view(-1, 1, 1, 1).expand(batch, 2, height, width)
    pieces = patchwork((1000 * own + torch.arange(height * width).view(height, width)).float(), torch.Generator())
    assert torch.equal(pieces % 1000, torch.arange(height * width).view(height, width).expand_as(pieces).float())
    areas = []
    for which, image in enumerate(pieces.div(1000, rounding_mode="floor").long()):
        assert torch.equal(image[0], image[1])
        foreign = image[0] != which
        areas.append(int(foreign.sum()))
        if areas[-1]:
            rows, columns = foreign.any(dim=1), foreign.any(dim=0)
            assert torch.equal(foreign, rows.unsqueeze(1) & columns)
            for line in (rows, columns):
                where = line.nonzero()
                assert int(where.max() - where.min()) + 1 == int(line.sum())
            assert len(image[0][foreign].unique()) == 1
    assert min(areas) < 5
    assert max(areas) > 35
    assert 0.4 < sum(areas) / (batch * height * width) < 0.6


def test_half_of_the_images_are_mirrored_left_to_right_and_nothing_else():
    images = torch.rand(64, 2, 3, 5, generator=torch.Generator().manual_seed(0))
    mirrored = mirror(images, torch.Generator().manual_seed(1))
    kept = (mirrored == images).flatten(1).all(dim=1)
    assert torch.equal(mirrored[~kept], images[~kept][..., [4, 3, 2, 1, 0]])
    assert 20 < int(kept.sum()) < 44


def test_a_shift_moves_each_image_by_whole_pixels_within_its_bound():
    base = torch.arange(49.0).view(1, 1, 7, 7)
    moved = shift(base.repeat(60, 1, 1, 1), 2, torch.Generator().manual_seed(0))
    assert moved.shape == (60, 1, 7, 7)
    seen = set()
    for image in moved[:, 0]:
        found = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if torch.equal(image[2:5, 2:5], base[0, 0, 2 - down : 5 - down, 2 - right : 5 - right])
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) > 10
    edge = shift(torch.arange(3.0).view(1, 1, 1, 3), 2, torch.Generator().manual_seed(1))
    assert set(edge.flatten().tolist()) <= {0.0, 1.0, 2.0}


def test_the_sharpness_step_is_the_formula_in_numpy():
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(3, 4, generator=generator), torch.randn(5, generator=generator)]
    gradients = [torch.randn(3, 4, generator=generator), torch.randn(5, generator=generator)]
    w, g = (np.concatenate([t.double().numpy().ravel() for t in tensors]) for tensors in (weights, gradients))
    expected = 0.7 * w**2 * g / np.sqrt(((np.abs(w) * g) ** 2).sum())
    steps = np.concatenate([t.numpy().ravel() for t in sam_perturbation(weights, gradients, radius=0.7)])
    np.testing.assert_allclose(steps, expected, rtol=1e-5)
    # Measured in units of the weights, the step is as long as the radius.
    np.testing.assert_allclose(np.linalg.norm(steps / w), 0.7, rtol=1e-5)


def test_the_sharpness_gradient_is_taken_at_the_neighbour_and_the_weights_stay():
    weight = torch.tensor([1.0, -2.0], requires_grad=True)

    def loss():
        return (weight**3).sum()

    gradient = 3 * weight.detach() ** 2
    neighbour = weight.detach() + sam_perturbation([weight.detach()], [gradient], radius=0.5)[0]
    sam_gradients([weight], loss, radius=0.5)
    torch.testing.assert_close(weight.grad, 3 * neighbour**2)
    assert weight.tolist() == [1.0, -2.0]


def test_a_loss_without_slope_moves_nothing():
    assert sam_perturbation([torch.ones(3)], [torch.zeros(3)], radius=2.0)[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("sam_radius", [0.0, 0.1])
def test_fine_tuning_learns_and_keeps_pruned_channels_silent(network, images, sam_radius):
    mask = {"0": torch.tensor([True, False, True, True])}

    def loss():
        with torch.no_grad():
            return float(F.cross_entropy(network(images.pixels_NCHW), images.labels))

    before = loss()
    schedule = Schedule(epochs=5, max_steps=12, batch_size=16, learning_rate=0.05, sam_radius=sam_radius, max_shift=1)
    done = []
    fine_tune(network, images, schedule, generator=torch.Generator().manual_seed(0), mask=mask, advance=done.append)
    assert loss() < 0.7 * before
    assert len(done) == schedule.num_steps(len(images)) == 12
    site = network.sites[0]
    assert not any(network.tensors[name][1].any() for name in site.tensors)


def test_the_images_are_changed_on_their_way_in_only(network, images):
    kept, seen = images.pixels_NCHW.clone(), []

    def change(pixels):
        seen.append(len(pixels))
        return 1 - pixels

    schedule = Schedule(epochs=1, max_steps=100, batch_size=16)
    fine_tune(network, images, schedule, generator=torch.Generator().manual_seed(0), change=change)
    assert seen == [16, 16, 16, 2]
    assert torch.equal(images.pixels_NCHW, kept)
