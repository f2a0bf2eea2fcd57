"""The bias per layer against NumPy."""

import numpy as np
import torch

from worker.sanitizer.activations import update
from worker.sanitizer.bias import layer_bias


def expected(clean, triggered, norm):
    difference = [norm(maps.numpy().astype(np.float64)).mean(axis=0) for maps in (triggered, clean)]
    difference = difference[0] - difference[1]
    centred = difference - np.median(difference)
    return (centred / (1.4826 * np.median(np.abs(centred)))).max()


NORMS = {
    "linf": lambda maps: np.abs(maps).max(axis=(2, 3)),
    "l1": lambda maps: np.abs(maps).sum(axis=(2, 3)),
    "l2": lambda maps: np.sqrt((maps**2).sum(axis=(2, 3))),
}


def test_each_norm_is_that_of_numpy_and_the_channel_is_named():
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand((20, 9, 6, 6), generator=generator)
    triggered = torch.rand((30, 9, 6, 6), generator=generator)
    triggered[:, 4, 5, 5] += 3  # a bright spot, as a patch makes it: a peak, and little of a sum
    (row,) = layer_bias({"layer": update(None, clean)}, {"layer": update(None, triggered)}, "synthetic")
    for name, norm in NORMS.items():
        np.testing.assert_allclose(getattr(row, name), expected(clean, triggered, norm), rtol=1e-5)
    assert (row.name, row.num_channels, row.channel, row.source) == ("layer", 9, 4, "synthetic")
    assert row.linf > 5 * row.l1


def test_layers_without_triggered_statistics_are_left_out():
    state = update(None, torch.rand(3, 4, 2, 2))
    assert layer_bias({"a": state, "b": state}, {}, "supplied") == []
    (row,) = layer_bias({"a": state, "b": state}, {"b": state}, "supplied")
    assert (row.name, row.linf, row.l1, row.l2) == ("b", 0, 0, 0)
