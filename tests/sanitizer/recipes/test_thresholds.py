"""Thresholds of soft masks: the largest within the budget, judged on the selection split alone."""

import torch

from worker.sanitizer.evaluate import accuracy
from worker.sanitizer.recipes import soft_masks
from worker.sanitizer.recipes.thresholds import limits_of, prune_low_masks
from worker.sanitizer.selection import Limits
from worker.sanitizer.spec import AccuracyBudget, FixedFraction, SanitizeSpec


def spec(drop):
    return SanitizeSpec(selection=AccuracyBudget(max_accuracy_drop=drop))


def test_the_budget_is_the_specifications_where_it_states_one():
    stated = AccuracyBudget(max_accuracy_drop=0.07, max_recall_drop=0.2)
    assert limits_of(SanitizeSpec(selection=stated)) == Limits(accuracy_drop=0.07, recall_drop=0.2)
    assert limits_of(SanitizeSpec(selection=FixedFraction(fraction=0.1))) == Limits(accuracy_drop=0.02)


def test_masks_are_pruned_up_to_the_largest_admissible_threshold(suspect):
    for drop in (0.0, 0.3):
        made = suspect(spec=spec(drop))
        network, select = made.bench.network, made.bench.select
        generator = torch.Generator().manual_seed(0)
        soft = {site.name: torch.rand(site.num_channels, generator=generator) for site in network.sites}
        before = accuracy(network, select.pixels_NCHW, select.labels)
        outcome = prune_low_masks(made.bench, network.sites, soft)
        after = accuracy(network, select.pixels_NCHW, select.labels)
        assert after >= before - drop - 1e-9
        admissible = [point.num_pruned for point in outcome.curve if point.admissible]
        assert outcome.choice.num_pruned == max(admissible)
        pruned = [soft[name][~keep] for name, keep in outcome.mask.items()]
        kept = [soft[name][keep] for name, keep in outcome.mask.items()]
        # But for each layer's last channel, which is always spared, nothing kept lies below anything pruned.
        threshold = float(torch.cat(pruned).max()) if outcome.choice.num_pruned else 0.0
        assert sum(int((values < threshold).sum()) for values in kept) <= len(kept)
        assert made.silent(outcome.mask)


def test_a_bound_on_recall_holds_for_thresholds_too(suspect):
    pruned = []
    for recall in (None, 0.0):
        bound = AccuracyBudget(max_accuracy_drop=0.6, max_recall_drop=recall)
        made = suspect(spec=SanitizeSpec(selection=bound))
        generator = torch.Generator().manual_seed(0)
        soft = {site.name: torch.rand(site.num_channels, generator=generator) for site in made.bench.network.sites}
        outcome = prune_low_masks(made.bench, made.bench.network.sites, soft)
        pruned.append(outcome.choice.num_pruned)
        assert all(recall is None or point.worst_recall_drop <= 1e-9 for point in outcome.curve if point.admissible)
    assert pruned[0] > pruned[1]


def test_a_soft_mask_of_zeros_and_ones_runs_as_the_hard_one(suspect):
    for batch_norm in (True, False):
        made = suspect(batch_norm=batch_norm)
        network, pixels = made.bench.network, made.clean.pixels_NCHW[:16]
        ones = soft_masks.ones(network, network.sites)
        with torch.no_grad():
            torch.testing.assert_close(
                network(pixels, soft_masks.masked(network, network.sites, ones)), network(pixels)
            )
            site = network.sites[1]
            ones[site.name][::2] = 0
            soft = network(pixels, soft_masks.masked(network, network.sites, ones))
            for name in site.tensors:
                network.tensors[name][::2] = 0
            torch.testing.assert_close(soft, network(pixels))
