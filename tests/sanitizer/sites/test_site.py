"""Slices: which rows a channel owns, and what a soft mask multiplies them by."""

import torch

from worker.sanitizer.sites import Rows, Site


def test_a_plain_slice_is_the_channels_own_row():
    rows = Rows("weight")
    tensor = torch.rand(5, 2, 3)
    index = rows.index(torch.tensor([1, 4]))
    assert torch.equal(tensor[index], tensor[[1, 4]])
    value_C = torch.rand(5)
    assert torch.equal(rows.factor(value_C, tensor), value_C.view(5, 1, 1))


def test_blocks_lie_a_stride_apart_and_other_rows_are_multiplied_by_one():
    rows = Rows("weight", axis=1, start=1, block=2, stride=3)
    tensor = torch.rand(4, 9)
    assert rows.index(torch.tensor([0, 2]))[1].tolist() == [1, 2, 7, 8]
    assert torch.equal(tensor[rows.index(torch.tensor([1]))], tensor[:, 4:6])
    factor = rows.factor(torch.tensor([2.0, 3.0, 5.0]), tensor)
    assert factor.tolist() == [1, 2, 2, 1, 3, 3, 1, 5, 5]


def test_maps_have_images_then_channels_then_positions():
    value = torch.arange(2 * 3 * 4 * 5.0).view(6, 4, 5)

    def site(**fields):
        return Site("a", "linear", 5, "tap", (), (), **fields)

    assert site(axis=1).maps(value) is value
    assert torch.equal(site(axis=2).maps(value), value.transpose(1, 2))
    maps = site(axis=2, parts=3).maps(value)
    assert maps.shape == (2, 5, 3, 4)
    assert torch.equal(maps[1, 2], value[3:, :, 2])
    assert site(axis=1).maps(value[:, :, 0]).shape == (6, 4, 1)
