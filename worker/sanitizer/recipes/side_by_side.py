"""Run trials of one network side by side: small batches gain little from a second core, two trials gain all of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from worker.sanitizer.network import Network

Result = TypeVar("Result")


def on_twins(network: Network, trials: Sequence[Callable[[Network], Result]]) -> list[Result]:
    """What each trial returns, each given a network of its own with the same tensors.

    Each must leave the network as it found it. They run at the same time where the processor has a core for each and
    in turn on the network itself otherwise, as on a GPU; the results are the same but for the rounding of sums that
    are split over another number of cores.

    Args:
        network: The first trial's; the others get copies.
        trials: They draw from generators of their own and share nothing that they change.
    """
    cores = torch.get_num_threads()
    if network.device.type != "cpu" or cores < len(trials):
        return [trial(network) for trial in trials]
    networks = [network, *(network.twin() for _ in trials[1:])]
    share = cores // len(trials)
    try:
        with ThreadPoolExecutor(len(trials), initializer=torch.set_num_threads, initargs=(share,)) as pool:
            running = [pool.submit(trial, one) for trial, one in zip(trials, networks, strict=True)]
            return [future.result() for future in running]
    finally:  # the number is partly of the process, partly of the thread that sets it
        torch.set_num_threads(cores)
