"""Unlearn each candidate by itself and see what it costs: a natural feature is dear, a backdoor is cheap."""

from __future__ import annotations

import math
from functools import partial
from threading import Lock

import torch
from torch import Tensor

from worker.sanitizer.case import Images
from worker.sanitizer.evaluate import divergence, log_probabilities
from worker.sanitizer.inspection import Findings
from worker.sanitizer.network import Network
from worker.sanitizer.recipes.side_by_side import on_twins
from worker.sanitizer.recipes.workbench import Workbench
from worker.sanitizer.repair import Course, Snapshot, unlearn
from worker.sanitizer.verdict import LARGEST_COST, Candidate, Said

# The most reachable classes are tried.
NUM_TRIALS = 6
# A class whose mask is smaller than the median class's by this logarithm is always tried.
PROMINENT = 0.6
# What a trial costs is read off this many patchworks of each image.
NUM_PATCHWORKS = 8
# Of a half, in float32: 500 images of 224 x 224 get three patchworks each. So many are kept at the least.
MAX_ASKED_BYTES = 1024 * 1024 * 1024
LEAST_ASKED = 64
# Gradient steps on each half of the images.
TRIAL_STEPS = 100
COURSE = Course(anchor_weight=5.0, trigger_weight=1.0, patchwork=False, batch_size=32, search_batch=8)
# A mask may grow by this factor during its trial.
GROWTH = 1.5


def try_targets(bench: Workbench, findings: Findings, before: Snapshot) -> list[Candidate]:
    """Unlearn each of the most reachable targets by itself, and see what that does to the answers on clean images.

    Natural features are shared: to unlearn one moves the answers on clean images. A backdoor is a shortcut beside them.
    Each is unlearnt twice, on either half of the images, and patchworks of the other half tell the cost: they exercise
    every natural feature, where whole images rarely hang on a single one.
    """
    network = bench.network
    rows = torch.argsort(findings.reach, descending=True, stable=True).tolist()[:NUM_TRIALS]
    standing_out = (findings.prominence > PROMINENT).nonzero().flatten().tolist()
    attractor = [] if findings.attractor is None else [findings.attractor]
    rows = list(dict.fromkeys([*rows, *attractor, *standing_out]))
    tried = [findings.triggers.take([row]) for row in rows]
    said = [_said(findings, row) for row in rows]
    if findings.leads_anywhere:
        tried.append(findings.anywhere)
        prominence = float((findings.size.min() / findings.anywhere.size()[0]).log())
        said.append(Said(prominence, math.nan, prominence, math.nan))
    halves = _halves(bench)
    pieced = [_pieced(bench, half) for half in halves]
    seen = [log_probabilities(network, pixels_NCHW) for pixels_NCHW in pieced]
    # Every trial on the same half draws the same batches: what differs is the trigger alone.
    seeds = [int(torch.randint(2**31, (), generator=bench.generator)) for _ in halves]
    lock = Lock()
    with bench.phase("try", len(tried) * len(halves) * TRIAL_STEPS) as advance:

        def step(done: int) -> None:
            with lock:
                advance(done)

        def costs(network: Network, taught: int, asked: int) -> list[float]:
            found = []
            for trigger in tried:
                unlearn(
                    network, halves[taught], trigger, GROWTH * trigger.size(), COURSE, anchor=before,
                    steps=TRIAL_STEPS, generator=torch.Generator().manual_seed(seeds[taught]), advance=step,
                )  # fmt: skip
                found.append(divergence(seen[asked], log_probabilities(network, pieced[asked])))
                network.load(before)
            return found

        per_half = on_twins(network, [partial(costs, taught=0, asked=1), partial(costs, taught=1, asked=0)])
    candidates = []
    for trigger, statistics, first, second in zip(tried, said, *per_half, strict=True):
        cost = (first + second) / 2
        cost = cost if math.isfinite(cost) else LARGEST_COST
        candidates.append(Candidate(int(trigger.targets_T[0]), trigger, statistics, cost))
    return candidates


def _said(findings: Findings, row: int) -> Said:
    return Said(
        prominence=float(findings.prominence[row]),
        ease=float(findings.ease[row]),
        excess_prominence=float(findings.excess_prominence[row]),
        excess_ease=float(findings.excess_ease[row]),
        expected_size=float(findings.expected_size[row]),
    )


def _pieced(bench: Workbench, half: Images) -> Tensor:
    """Patchworks of each image, fewer of large ones, and of some images alone where one of each would be too many."""
    most = max(LEAST_ASKED, MAX_ASKED_BYTES // half.pixels_NCHW[0].nbytes)
    some = half.take(torch.arange(min(most, len(half))))  # the halves are in random order
    rounds = max(1, min(NUM_PATCHWORKS, most // len(some)))
    return torch.cat([bench.vary(some.pixels_NCHW, some.labels, bench.generator) for _ in range(rounds)])


def _halves(bench: Workbench) -> list[Images]:
    """All clean images that a recipe may see, in two random halves."""
    images = bench.repair.join(bench.select)
    return [images.take(index) for index in torch.randperm(len(images), generator=bench.generator).chunk(2)]
