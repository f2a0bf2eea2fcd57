"""Real architectures through our readers and writers and back into their own libraries.

    python -m benchmarks.round_trip

It needs torchvision, timm and transformers, which may lie in a folder of their own: `pip install --no-deps --target
FOLDER torchvision timm transformers tokenizers regex`, then PYTHONPATH=FOLDER. Writes
`benchmarks/results/round_trip.md`. Rows are kept in `--rows`, so that a run that was cut off goes on where it ended.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.battery import provenance
from benchmarks.trips import page
from benchmarks.trips.catalogue import ARCHITECTURES, Architecture, without_compiled_operators
from benchmarks.trips.runtimes import FORMATS
from benchmarks.trips.trip import make_trip

RESULT = provenance.ROOT / "benchmarks" / "results" / "round_trip.md"
DEFAULT_FORMATS = ("safetensors", "pt2", "onnx")


def main() -> int:
    """Make the trips that no row tells of, and write the page."""
    options = _options()
    if options.without_compiled_operators:
        without_compiled_operators()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    formats = options.formats.split(",")
    chosen = [one for one in ARCHITECTURES if fnmatch.fnmatch(f"{one.source}:{one.name}", options.only)]
    rows = _kept(options.rows)
    for architecture in chosen:
        for kind in formats:
            if (key := (architecture.source, architecture.name, kind)) not in rows:
                rows[key] = _trip(architecture, kind)
                _keep(options.rows, rows[key])
    wanted = [(one.source, one.name, kind) for one in chosen for kind in formats]
    options.out.write_text(page.write([rows[key] for key in wanted], formats), encoding="utf-8")
    print(options.out)
    return 0


def _trip(architecture: Architecture, kind: str) -> dict[str, Any]:
    began = time.process_time()
    row = make_trip(architecture, kind).as_dict()
    row |= {"seconds": round(time.process_time() - began, 1), "commit": provenance.commit()}
    print(row["source"], row["name"], kind, row["code"], row["detail"], f"{row['seconds']} s", flush=True)
    torch.compiler.reset()  # what torch remembers of one export is of no use to the next
    return row


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default=",".join(DEFAULT_FORMATS), help=f"of {', '.join(FORMATS)}")
    parser.add_argument("--only", default="*", metavar="SOURCE:NAME", help="a pattern, such as 'timm:*'")
    parser.add_argument("--rows", type=Path, help="a file of rows, read first and added to")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument(
        "--without-compiled-operators",
        action="store_true",
        help="for a torchvision whose compiled operators do not fit the installed torch; no classifier uses one",
    )
    return parser.parse_args()


def _kept(path: Path | None) -> dict[tuple[str, str, str], dict[str, Any]]:
    """The rows that earlier runs gave, of whatever commit: the page says of which."""
    if path is None or not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(row["source"], row["name"], row["format"]): row for row in rows}


def _keep(path: Path | None, row: dict[str, Any]) -> None:
    if path is not None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    sys.exit(main())
