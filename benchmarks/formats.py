"""The bundled suspect as safetensors, .pth, .pt2 and ONNX: whether a job decides the same, and gives the same network.

    python -m benchmarks.formats

It runs each recipe on each format on one thread, and writes `benchmarks/results/formats.md`.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.battery import provenance
from benchmarks.markdown import table
from benchmarks.trips import suspect
from benchmarks.trips.page import versions
from benchmarks.trips.runtimes import FORMATS
from worker.sanitizer.spec import FixedFraction, SanitizeSpec

RESULT = provenance.ROOT / "benchmarks" / "results" / "formats.md"
RECIPES = {
    "fixed": SanitizeSpec(recipe="prune", inputs="clean", selection=FixedFraction(fraction=0.25), device="cpu"),
    "paper": SanitizeSpec(recipe="paper", device="cpu"),
    "auto": SanitizeSpec(device="cpu", caps=False),
}
_WHAT = {
    "fixed": "a quarter of all channels by the ℓ∞ norm on clean images, no trigger synthesised, nothing trained",
    "paper": "the rule of the paper: triggers synthesised, the last convolution pruned",
    "auto": "the default but for activation caps, which not every format carries",
}
_INTRODUCTION = """# The suspect in every format

Written by `python -m benchmarks.formats`; not to be edited. {where}

The bundled suspect (`examples/suspect.safetensors`) is saved in each format from the same module, and one job with the
same seed and images runs on each file. Sites are compared by their place in the graph, since a format may name them in
its own way. `onnx` is torch's older exporter, which folds every batch norm into its convolution; `onnx_new` the newer
one. Logits are those of torch, `torch.export.load` and ONNX Runtime on the 500 clean and 200 triggered images, the
largest difference from the first row's in parts of its largest logit; *same answers* is the share of these 700 images
that the download puts into the same class as the first row's download.
"""


def main() -> int:
    """Run the jobs and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default=",".join(RECIPES), help="default: %(default)s")
    parser.add_argument("--formats", default=",".join(FORMATS), help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    lines = [_INTRODUCTION.format(where=versions())]
    for recipe in options.recipes.split(","):
        outcomes, seconds = {}, {}
        for kind in options.formats.split(","):
            began = time.process_time()
            with tempfile.TemporaryDirectory() as folder:
                outcomes[kind] = suspect.run(kind, Path(folder), RECIPES[recipe])
            seconds[kind] = time.process_time() - began
            print(recipe, *suspect.page(outcomes, seconds)[-1], flush=True)
        lines += [f"## `{recipe}`: {_WHAT[recipe]}", "", *table(suspect.HEADER, suspect.page(outcomes, seconds)), ""]
    lines.append("Seconds are processor time on one thread, of the job, the export and the comparison.")
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
