"""Models of transformers as repositories: a zip of what save_pretrained writes, loaded by from_pretrained.

Shapes: N images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from worker.sanitizer.architectures.hugging_face.design import Classifier

MEMBERS = ("config.json", "model.safetensors")


def write(module: nn.Module, path: Path) -> None:
    """The repository of the classifier's model, as its owner would zip it."""
    model: Any = module.model
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for name in MEMBERS:
                archive.write(Path(folder) / name, name)


def read(path: Path, build: Callable[[], nn.Module]) -> tuple[nn.Module, dict[str, str]]:
    """What from_pretrained of the model's own class makes of it, and its name for each name in the file.

    The library renames; which is which is told by values, since no two tensors of a random network are alike.
    """
    kind: Any = type(build().model)
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
        model, info = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True)
        stored = safetensors.torch.load_file(Path(folder) / MEMBERS[1])
    wrong = {key: info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[key]}
    if wrong:
        raise ValueError(f"from_pretrained found {wrong}")
    module = Classifier(model).eval()
    own = module.state_dict()
    return module, {name: found for name, tensor in stored.items() if (found := _alike(tensor, own)) is not None}


def facts(path: Path) -> object:
    """Each member's bytes; of the weights the header and the length."""
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        config, weights = (archive.read(name) for name in MEMBERS)
        length = int.from_bytes(weights[:8], "little")
        header = json.loads(weights[8 : 8 + length])
        return archive.namelist(), config, list(header), header, len(weights)


def _alike(tensor: Tensor, own: dict[str, Tensor]) -> str | None:
    return next((name for name, one in own.items() if one.shape == tensor.shape and torch.equal(one, tensor)), None)
