"""Fine-Pruning silences the sleepiest channels of the last convolution and stops before the accuracy breaks."""

import torch

from worker.sanitizer.recipes.fine_pruning import fine_pruning


def test_the_lowest_mean_activations_go_first_and_the_breaking_step_is_not_kept(suspect):
    made = suspect()
    network = made.bench.network
    site = network.last_conv()
    seen = []
    with torch.no_grad():
        network.observe(made.bench.repair.pixels_NCHW, {site.tap: lambda maps: seen.append(maps.clone())})
    order = seen[0].double().mean(dim=(0, 2, 3)).argsort(stable=True)
    outcome = fine_pruning(made.bench)
    assert set(outcome.mask) == {site.name}
    pruned = (~outcome.mask[site.name]).nonzero().flatten().tolist()
    assert 0 < len(pruned) < site.num_channels
    assert set(pruned) == set(order[: len(pruned)].tolist())
    baseline = outcome.curve[0].accuracy
    kept = [point for point in outcome.curve if point.num_pruned <= len(pruned)]
    assert kept[-1].accuracy > 0.9 * baseline
    broke = [point for point in outcome.curve if point.num_pruned > len(pruned)]
    assert all(point.accuracy <= 0.9 * baseline for point in broke)
    assert made.silent(outcome.mask)
