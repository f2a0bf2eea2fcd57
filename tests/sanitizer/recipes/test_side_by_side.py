"""Trials side by side: each on a network of its own, the same answers as in turn."""

import threading

import pytest
import torch

from worker.sanitizer.recipes.side_by_side import on_twins
from worker.sanitizer.repair import snapshot


@pytest.fixture
def cores():
    """Set the number of cores that a job may use."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("number", [1, 2, 5])
def test_trials_that_change_their_network_see_nothing_of_each_other(suspect, cores, number):
    cores(number)
    made = suspect()
    network, pixels = made.bench.network, made.bench.select.pixels_NCHW[:8]
    before = snapshot(network)
    names = list(network.parameters())
    # Side by side they wait for one another in the middle; a trial that had no network of its own would show there.
    meet = threading.Barrier(2) if number > 1 else None

    def scaled(one, factor):
        with torch.no_grad():
            for name in names:
                one.tensors[name].mul_(factor)
        if meet is not None:
            meet.wait(timeout=30)
        answer = one(pixels).detach()
        one.load(before)
        return torch.get_num_threads(), answer

    found = on_twins(network, [lambda one: scaled(one, 1.0), lambda one: scaled(one, 0.5)])
    assert [threads for threads, _ in found] == [max(1, number // 2)] * 2
    assert torch.get_num_threads() == number
    torch.testing.assert_close(found[0][1], network(pixels).detach())
    assert not torch.allclose(found[0][1], found[1][1])
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.tensors.items())


def test_a_trial_that_fails_says_so(suspect, cores):
    cores(2)

    def fail(_):
        raise ArithmeticError("no")

    with pytest.raises(ArithmeticError):
        on_twins(suspect().bench.network, [lambda _: 1, fail])
    assert torch.get_num_threads() == 2
