"""Random triggers: each family as its formula says, on every shape, the same from the same seed."""

import math

import numpy as np
import pytest
import torch

from worker.sanitizer import disturbances
from worker.sanitizer.disturbances import FAMILIES, disturb


def images(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(24, 1, 28, 28), (24, 3, 9, 14), (5, 3, 4, 4), (1, 1, 1, 1)])
def test_disturbed_images_are_images_of_the_same_shape_and_the_given_ones_stay(shape):
    given = images(*shape)
    kept = given.clone()
    disturbed = disturb(given, seeded())
    assert disturbed.shape == given.shape
    assert bool(disturbed.isfinite().all())
    assert float(disturbed.min()) >= 0
    assert float(disturbed.max()) <= 1
    assert torch.equal(given, kept)
    assert torch.equal(disturbed, disturb(given, seeded()))
    assert math.prod(shape) == 1 or not torch.equal(disturbed, disturb(given, seeded(1)))


def test_every_family_takes_its_share_of_the_images(monkeypatch):
    def marking(value):
        return lambda pixels, _generator: torch.full_like(pixels, value / 10)

    monkeypatch.setattr(disturbances, "FAMILIES", tuple(marking(value) for value in range(len(FAMILIES))))
    disturbed = disturb(images(60, 1, 4, 4), seeded())
    values, counts = disturbed[:, 0, 0, 0].unique(return_counts=True)
    assert counts.tolist() == [10] * len(FAMILIES)
    torch.testing.assert_close(values, torch.arange(len(FAMILIES)) / 10)


def test_a_blend_keeps_most_of_the_image_and_is_linear_in_it():
    black, white = torch.zeros(50, 2, 8, 8), torch.ones(50, 2, 8, 8)
    low, high = disturbances.blend(black, seeded()), disturbances.blend(white, seeded())
    # (1 - a) 1 + a p less a p is 1 - a, one number for each image.
    share = 1 - (high - low)
    torch.testing.assert_close(share, share[:, :1, :1, :1].expand_as(share))
    assert float(share.max()) <= disturbances.MAX_BLEND + 1e-6
    assert float(share.max()) > 0.8 * disturbances.MAX_BLEND
    pattern = low / share
    assert float(pattern.min()) >= -1e-5
    assert float(pattern.max()) <= 1 + 1e-5


def test_added_noise_stays_within_its_amplitude_and_is_fine_or_smooth():
    added = disturbances.add_noise(torch.zeros(200, 1, 16, 16), seeded())
    largest = added.abs().amax(dim=(1, 2, 3))
    assert float(largest.max()) <= disturbances.MAX_AMPLITUDE
    assert float(largest.max()) > 0.9 * disturbances.MAX_AMPLITUDE
    steps = added.diff(dim=3).abs().mean(dim=(1, 2, 3)) / added.abs().mean(dim=(1, 2, 3))
    assert 50 < int((steps < 0.9).sum()) < 150


def test_an_added_wave_is_one_plane_wave():
    """A plane wave s obeys s(i-1, j) + s(i+1, j) = 2 cos(k) s(i, j), along rows and along columns alike."""
    wave = disturbances.add_wave(torch.zeros(40, 1, 12, 12), seeded()).double().numpy()[:, 0]
    for one in wave:
        for along in (one, one.T):
            middle, around = along[1:-1].ravel(), (along[:-2] + along[2:]).ravel()
            twice_cosine = middle @ around / (middle @ middle)
            np.testing.assert_allclose(around, twice_cosine * middle, atol=1e-5)
            assert abs(twice_cosine) <= 2 + 1e-5
    assert np.abs(wave).max() <= disturbances.MAX_AMPLITUDE


def test_a_paste_changes_one_rectangle():
    given = torch.full((2000, 3, 12, 20), 0.4321)
    changed = disturbances.paste(given, seeded()) != given
    for one in changed.any(dim=1):
        rows, columns = one.any(dim=1), one.any(dim=0)
        assert torch.equal(one, rows.unsqueeze(1) & columns)
        assert 1 <= int(rows.sum()) <= 1 + 12 * disturbances.MAX_PATCH
        assert 1 <= int(columns.sum()) <= 1 + 20 * disturbances.MAX_PATCH
    corners = changed.any(dim=1).float().mean(dim=0)
    assert min(float(corners[row, column]) for row in (0, -1) for column in (0, -1)) > 0, "a corner is never reached"


def test_a_cover_hides_its_share_of_the_area_with_one_colour():
    given = torch.zeros(100, 1, 20, 20)
    covered = 1 - disturbances.cover(1 - given, seeded())  # black objects stay unseen on black, white ones on white
    shares = []
    for one in covered[:, 0]:
        values = one[one.abs() > 1e-6]
        if len(values):
            assert float(values.max() - values.min()) < 1e-5
            shares.append(len(values) / one.numel())
    least, most = disturbances.OBJECT_AREA
    assert len(shares) > 30
    assert min(shares) >= least
    assert max(shares) <= most + 1 / 400


def test_a_warp_moves_pixels_and_makes_none():
    given = images(30, 1, 16, 16)
    warped = disturbances.warp(given, seeded())
    assert float(warped.min()) >= float(given.min()) - 1e-6
    assert float(warped.max()) <= float(given.max()) + 1e-6
    # A ramp tells by how much: its values are the columns.
    ramp = torch.arange(16.0).expand(200, 1, 16, 16) / 15
    moved = (disturbances.warp(ramp, seeded()) - ramp).abs().mean(dim=(1, 2, 3)) * 15
    assert 0.1 < float(moved.mean()) < disturbances.MAX_OFFSET * 16
    flat = torch.full((4, 1, 8, 8), 0.3)
    torch.testing.assert_close(disturbances.warp(flat, seeded()), flat)


@pytest.mark.parametrize("number", [1, 3, 7, 10, 25])
def test_few_images_leave_no_family_out_for_good(monkeypatch, number):
    drawn = []

    def counting(value):
        return lambda pixels, _: (drawn.extend([value] * len(pixels)), pixels)[1]

    monkeypatch.setattr(disturbances, "FAMILIES", tuple(counting(value) for value in range(6)))
    generator = seeded()
    for _ in range(120):
        assert disturb(images(number, 3, 8, 8), generator).shape == (number, 3, 8, 8)
    counts = [drawn.count(value) / len(drawn) for value in range(6)]
    assert len(drawn) == 120 * number
    assert max(abs(count - 1 / 6) for count in counts) < 0.1
    if number >= 6:
        assert min(counts) > 0.1
