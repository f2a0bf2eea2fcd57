"""How much of a repair the budget lets stand."""

import torch

from worker.sanitizer.recipes.walk_back import admissible, right, walk_back
from worker.sanitizer.repair import interpolate, snapshot
from worker.sanitizer.spec import AccuracyBudget


def test_a_training_that_diverged_is_taken_back(suspect):
    bench = suspect().bench
    start = snapshot(bench.network)
    spoilt = {name: torch.full_like(tensor, torch.nan) for name, tensor in start.items() if tensor.is_floating_point()}
    before = right(bench)
    assert walk_back(bench, start, {**start, **spoilt}, before, None) == 0.0
    assert all(torch.equal(tensor, start[name]) for name, tensor in bench.network.tensors.items())


def test_a_repair_that_ruins_the_network_is_taken_back(suspect):
    bench = suspect().bench
    start = snapshot(bench.network)
    ruined = {name: tensor * -3 if tensor.is_floating_point() else tensor for name, tensor in start.items()}
    share = walk_back(bench, start, ruined, right(bench), AccuracyBudget(max_accuracy_drop=0.02))
    assert share < 1.0
    assert float(right(bench).double().mean()) > 0.9


def test_a_budget_holds_for_each_class_where_it_bounds_the_recall():
    labels = torch.arange(100) % 4
    before = torch.ones(100, dtype=torch.bool)
    after = before.clone()
    after[labels == 2] = torch.arange(25) >= 10  # 10 of 25 lost, 10 of 100
    loose, strict = AccuracyBudget(max_accuracy_drop=0.1), AccuracyBudget(max_accuracy_drop=0.1, max_recall_drop=0.2)
    assert admissible(loose, before, after, labels)
    assert not admissible(strict, before, after, labels)
    after[labels == 2] = torch.arange(25) >= 6  # 0.24 with a standard error of 0.085
    assert admissible(strict, before, after, labels)
    after[:] = torch.arange(100) >= 20
    assert not admissible(loose, before, after, labels)


def test_a_constant_that_holds_infinities_takes_no_repair_back(suspect):
    bench = suspect().bench
    bench.network.tensors["mask"] = torch.tensor([0.0, -torch.inf])
    start = snapshot(bench.network)
    name = next(iter(bench.network.parameters()))
    moved = {**start, name: start[name] * 1.01}
    assert walk_back(bench, start, moved, right(bench), None) == 1.0
    assert torch.equal(bench.network.tensors["mask"], start["mask"])
    torch.testing.assert_close(bench.network.tensors[name].detach(), moved[name])
    interpolate(bench.network, start, moved, 0.55)
    assert torch.equal(bench.network.tensors["mask"], start["mask"])
    torch.testing.assert_close(bench.network.tensors[name].detach(), torch.lerp(start[name], moved[name], 0.55))


def test_a_single_image_that_flips_is_what_chance_explains():
    labels = torch.tensor([0] + [1] * 60)
    before, after = torch.ones(61, dtype=torch.bool), torch.arange(61) > 0
    assert admissible(AccuracyBudget(max_accuracy_drop=0.1, max_recall_drop=0.2), before, after, labels)
    labels[:9] = 0
    after[:9] = False
    assert not admissible(AccuracyBudget(max_accuracy_drop=0.2, max_recall_drop=0.2), before, after, labels)
