"""Which classes Neural Cleanse suspects, by hand."""

import numpy as np
import pytest
import torch

from worker.sanitizer.recipes.nc_unlearn import anomaly_index, suspected


def test_the_anomaly_index_is_numpys_and_positive_below_the_median():
    sizes = torch.tensor([30.0, 41.0, 5.0, 38.0, 35.0, 60.0])
    array = sizes.double().numpy()
    deviation = 1.4826 * np.median(np.abs(array - np.median(array)))
    np.testing.assert_allclose(anomaly_index(sizes).numpy(), (np.median(array) - array) / deviation)


@pytest.mark.parametrize(
    ("sizes", "classes"),
    [
        ([30.0, 41.0, 5.0, 38.0, 35.0, 60.0], [2]),
        ([5.0, 41.0, 5.5, 38.0, 35.0, 40.0, 39.0], [0, 2]),
        ([30.0, 31.0, 29.5, 33.0, 90.0], [2]),
        ([7.0, 3.0], [1]),
    ],
)
def test_small_outliers_are_suspected_or_else_the_smallest(sizes, classes):
    assert suspected(torch.tensor(sizes)) == classes
