"""Time passes through networks as the library lays them out against the same modules as torch has them.

    python -m benchmarks.passes --threads 1

A pass is forwards and backwards, to the image as in a search for triggers or to the weights as in a repair. Both sides
take turns in one run; what counts is the ratio of their medians.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from benchmarks import markdown
from benchmarks.battery import provenance
from worker.sanitizer.architectures import OptionValue, build
from worker.sanitizer.network import from_module
from worker.sanitizer.spec import ArchitectureSpec, InputSpec

PAGE = provenance.ROOT / "benchmarks" / "results" / "passes.md"
SIDE, NUM_CLASSES, BATCH = 28, 10, 128
INPUT = InputSpec(height=SIDE, width=SIDE, mean=(0.0,), std=(1.0,))
NETWORKS: dict[str, tuple[str, dict[str, OptionValue]]] = {
    "small_resnet, width 16": ("small_resnet", {"width": 16, "stem_stride": 2}),
    "small_vgg, width 16": ("small_vgg", {"width": 16}),
    "small_vgg, width 24, no batch norm": ("small_vgg", {"width": 24, "batch_norm": False}),
    "preact_resnet18": ("preact_resnet18", {}),
}


def main(arguments: list[str] | None = None) -> int:
    """Time every network and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 is torch's choice")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    lines = []
    for title, (name, given) in NETWORKS.items():
        lines.append([title, *compare(name, given, options.turns)])
        print(*lines[-1], sep="  ", flush=True)
    threads = torch.get_num_threads()
    head = ["network", "to the image, ms", "as torch has it", "ratio", "to the weights, ms", "as torch has it", "ratio"]
    facts = (
        f"Written by `python -m benchmarks.passes`; not to be edited. {provenance.today()} at commit "
        f"`{provenance.commit()}`, torch {torch.__version__}, {threads} thread{'s' if threads > 1 else ''}. Machine: "
        f"{provenance.machine('cpu')}."
    )
    what = (
        f"Medians of {options.turns} turns, milliseconds an image, {BATCH} images of {SIDE} x {SIDE} a pass, forwards "
        "and backwards: with channels last and batch norms folded, beside the module in its default layout."
    )
    options.page.write_text("\n".join(["# Passes\n", facts, "", what, "", *markdown.table(head, lines)]) + "\n")
    print(options.page)
    return 0


def compare(name: str, given: dict[str, OptionValue], turns: int) -> list[str]:
    """Milliseconds an image with the library and with torch, and their ratio, to the image and to the weights."""
    torch.manual_seed(0)
    spec = ArchitectureSpec(name=name, num_classes=NUM_CLASSES, in_channels=1, options=given)
    plain = build(spec).eval()
    ours = copy.deepcopy(plain)
    network = from_module(ours, INPUT)
    pixels_NCHW = torch.rand(BATCH, 1, SIDE, SIDE)
    cells = []
    for to_weights in (False, True):
        sides: list[tuple[nn.Module, Callable[[Tensor], Tensor]]] = [(ours, network), (plain, plain)]
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(turns):
            for (module, answer), taken in zip(sides, seconds, strict=True):
                module.requires_grad_(to_weights)
                started = time.perf_counter()
                answer(pixels_NCHW.clone().requires_grad_(not to_weights)).sum().backward()
                taken.append(time.perf_counter() - started)
        mine, theirs = (1000 * median(taken) / BATCH for taken in seconds)
        cells += [f"{mine:.3f}", f"{theirs:.3f}", f"{mine / theirs:.2f}"]
    return cells


if __name__ == "__main__":
    sys.exit(main())
