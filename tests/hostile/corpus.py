"""All hostile files, generated: nothing of them is stored."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.hostile import checkpoints, datasets, pickles, repositories
from tests.hostile.case import Case


def cases() -> list[Case]:
    """Every case once; what two sources make alike for one parser is kept from the first."""
    return [
        *checkpoints.safetensors_cases(),
        *checkpoints.torch_cases(),
        *pickles.cases(),
        *checkpoints.pt2_cases(),
        *checkpoints.onnx_cases(),
        *repositories.cases(),
        *datasets.npz_cases(),
        *datasets.image_cases(),
        *datasets.parquet_cases(),
    ]


def write(folder: Path, marker: Path) -> list[Case]:
    """Write every distinct file into a folder; those that carry code would create the marker with the file's name.

    Returns:
        The cases that were written.
    """
    seen: set[tuple[bool, bytes]] = set()
    written = []
    for case in cases():
        data = case.build(marker / case.name)
        key = (case.is_dataset, hashlib.sha256(data).digest())
        if key not in seen:
            seen.add(key)
            (folder / case.file_name).write_bytes(data)
            written.append(case)
    return written
