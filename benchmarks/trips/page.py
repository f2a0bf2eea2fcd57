"""The page of the round trips, from their rows."""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.battery import provenance
from benchmarks.markdown import table

_PACKAGES = ("torch", "torchvision", "timm", "transformers", "safetensors", "onnx", "onnxruntime", "onnxscript")

_INTRODUCTION = """# Round trips

Written by `python -m benchmarks.round_trip`; not to be edited. {where}

Each architecture is built by its own library with random weights (seed 0; statistics, scales and shifts of every norm
drawn anew) and saved as its owner would save it. Our reader takes the file; its logits are held against the original's.
Then a quarter of the channels of up to six sites and of one site of each kind is silenced, our writer writes the file,
and the file is loaded where it came from: `load_state_dict` for safetensors, `torch.export.load` for .pt2, ONNX Runtime
for ONNX. A trip is whole if all of this holds:

- the logits before agree within 1e-5 of the largest logit (or of 1), ONNX with ONNX Runtime within 1e-4;
- so do those of the reloaded file and of our silenced network, and silencing moved them;
- keys, dtypes, shapes, order, metadata and every byte that is no weight are the same (of .pt2, but for the sample
  inputs, which are a pickle and are replaced);
- in our view the silenced channels are zero on every image at the place that is profiled, and in the original's own
  library so is every result of the operators that take the tensors of these channels.

A cell has the number of sites, the difference before, and the difference after; or the code of what failed.
`onnx` is torch's older exporter, which folds batch norms; `onnx_new` is the newer one. *By name* is the way of
weights alone: the product builds the architecture itself. For torchvision and timm the file is a safetensors file and
the architecture a name; for transformers it is a zip of `config.json` and `model.safetensors`, small networks of each
family, which `from_pretrained` loads afterwards.
"""


def write(rows: Sequence[Mapping[str, Any]], formats: Sequence[str]) -> str:
    """The whole page, from trips that each say their `commit` and their `seconds` of processor time."""
    by_name: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        by_name.setdefault((row["source"], row["name"]), {})[row["format"]] = row
    lines = [_INTRODUCTION.format(where=f"{versions()} {_measured(rows)}")]
    lines += [
        "## How many are whole",
        "",
        *table(("", *map(_title, formats)), [_counts(by_name.values(), formats)]),
        "",
    ]
    lines += ["## Each one", ""]
    header = ("architecture", "side", "parameters", "sites", "left out", *(_title(kind) for kind in formats))
    lines += table(header, [_line(name, found, formats) for name, found in by_name.items()])
    failed = [row for row in rows if row["code"] != "ok"]
    if failed:
        lines += ["", "## What failed", ""]
        lines += [
            f"- {row['source']} `{row['name']}`, {row['format']}: `{row['code']}` {row['detail']}" for row in failed
        ]
    seconds = sum(row["seconds"] for row in rows)
    lines += ["", f"The {len(rows)} trips took {seconds / 60:.0f} minutes of processor time on one thread."]
    return "\n".join(lines) + "\n"


def versions() -> str:
    """Machine, date, commit and packages in a sentence."""
    packages = []
    for name in _PACKAGES:
        try:
            packages.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return (
        f"Written {provenance.today()} at commit `{provenance.commit()}` (+: with changes that are not in it), "
        f"library `{provenance.library_version()}`, on {provenance.machine('cpu')}; {', '.join(packages)}."
    )


def _measured(rows: Sequence[Mapping[str, Any]]) -> str:
    counts = Counter(f"`{row['commit']}`" for row in rows)
    return f"Trips by commit: {', '.join(f'{key} {count}' for key, count in counts.items())}."


def _title(kind: str) -> str:
    return "by name" if kind == "safetensors" else kind


def _counts(found: Iterable[Mapping[str, Mapping[str, Any]]], formats: Sequence[str]) -> list[str]:
    found = list(found)
    cells = []
    for kind in formats:
        asked = [rows[kind] for rows in found if kind in rows]
        cells.append(f"{sum(row['code'] == 'ok' for row in asked)} of {len(asked)}")
    return ["architectures", *cells]


def _line(name: tuple[str, str], found: Mapping[str, Mapping[str, Any]], formats: Sequence[str]) -> list[str]:
    known = [row for row in found.values() if row["sites"]]
    row = known[0] if known else next(iter(found.values()))
    sites = ", ".join(f"{count} {kind}" for kind, count in sorted(row["sites"].items())) or "-"
    cells = [_cell(found.get(kind)) for kind in formats]
    return [
        f"{name[0]} `{name[1]}`", str(row["side"]), f"{row['parameters'] / 1e6:.1f} M", sites, str(row["num_skipped"]),
        *cells,
    ]  # fmt: skip


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "not run"
    if row["code"] != "ok":
        return f"**{row['code']}**"
    batch = ", fixed batch" if row["batch"] == "fixed" else ""
    return f"{sum(row['sites'].values())}: {row['before']:.0e}, {row['after']:.0e}{batch}"
