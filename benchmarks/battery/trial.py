"""What all recipes that are tried on one model have in common: the clean set, the images that score, the references.

Shape legend: N images, C channels, H height, W width.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, fx, nn

from benchmarks.battery import attacks, data, metrics
from benchmarks.battery.catalogue import ModelConfig, all_models
from benchmarks.battery.train import evaluate, read_record
from worker.sanitizer.architectures import build
from worker.sanitizer.spec import ArchitectureSpec, InputSpec

# What a model is sent as: a state dict, or an exported program, which has a place for activation caps.
Form = Literal["safetensors", "pt2"]
WEIGHTS: Form = "safetensors"
# A rate of fewer images says too little to be written down.
MIN_SCORED_IMAGES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One model and one draw of clean images.

    Attributes:
        config: The model.
        seed: Draws the clean set and the poisoned samples.
        num_images: Size of the clean set.
        checkpoint: The model's file.
        architecture: What a user declares of it.
        input_spec: What a user declares of its input.
        clean: Indices in the test split that the product is given.
        unseen: The data set with all other test images; only they score.
        attack: The true attack, None for a clean model; it only ever scores.
        before: The answer of `train.evaluate` for the model as it is.
        twin_before: The answer of `train.evaluate` for the clean twin, None for a clean model or without a trained
            twin: what the trigger does to a network that never had a backdoor.
        twin_reactivated: The same after the poisoned samples.
    """

    config: ModelConfig
    seed: int
    num_images: int
    checkpoint: Path
    architecture: ArchitectureSpec
    input_spec: InputSpec
    clean: Tensor
    unseen: data.Dataset
    attack: attacks.Attack | None
    before: Mapping[str, Any]
    twin_before: Mapping[str, Any] | None
    twin_reactivated: Mapping[str, Any] | None

    def is_for(self, config: ModelConfig, seed: int, num_images: int) -> bool:
        """Return whether this is the trial of that model and that draw."""
        return (self.config.key, self.seed, self.num_images) == (config.key, seed, num_images)

    def write_clean_set(self, path: Path) -> None:
        """Write the clean set as a user would: uint8 images and their labels, as npz."""
        dataset = data.load(self.config.dataset)
        images_NCHW, labels_N = dataset.test_images_NCHW[self.clean], dataset.test_labels_N[self.clean]
        np.savez(path, images=images_NCHW.numpy(), labels=labels_N.numpy())

    def declared(self, form: Form) -> ArchitectureSpec:
        """Return what a user says of the architecture: of a program that it is in the file."""
        if form == WEIGHTS:
            return self.architecture
        return replace(self.architecture, source="file", name="", options={})

    def write_model(self, path: Path) -> None:
        """Write the model as a user would send it, in the form that the file's name ends in."""
        if path.suffix == f".{WEIGHTS}":
            shutil.copyfile(self.checkpoint, path)
            return
        network = _load(self.architecture, self.checkpoint)
        example_NCHW = torch.zeros(2, len(self.input_spec.mean), self.input_spec.height, self.input_spec.width)
        shapes = ({0: torch.export.Dim.DYNAMIC},)
        torch.export.save(torch.export.export(network, (example_NCHW,), dynamic_shapes=shapes), path)

    def load(self, path: Path) -> nn.Module:
        """Return the network of a file that came back; of a program, as torch loads it."""
        if path.suffix == f".{WEIGHTS}":
            return _load(self.architecture, path)
        program = torch.export.load(path).module()
        assert isinstance(program, fx.GraphModule)
        # A plain one, which can be told to be in inference mode and trained on.
        return fx.GraphModule(program, program.graph)


def prepare(folder: Path, config: ModelConfig, *, seed: int, num_images: int) -> Trial:
    """Return the trial of a trained model.

    Raises:
        ValueError: the data set has too few images for it.
    """
    record = read_record(folder, config)
    assert record is not None, "only trained models are judged"
    declared = record["model"]["input"]
    architecture = ArchitectureSpec(**record["model"]["architecture"])
    dataset = data.load(config.dataset)
    clean, rest = draw(dataset.test_labels_N, num_images, seed)
    unseen = replace(
        dataset, test_images_NCHW=dataset.test_images_NCHW[rest], test_labels_N=dataset.test_labels_N[rest]
    )
    attack = attacks.make(config.attack, num_classes=dataset.num_classes) if config.attack else None
    twin = None if attack is None else _load_twin(folder, config)
    checkpoint = folder / f"{config.key}.safetensors"
    return Trial(
        config=config,
        seed=seed,
        num_images=num_images,
        checkpoint=checkpoint,
        architecture=architecture,
        input_spec=InputSpec(
            height=declared["height"],
            width=declared["width"],
            mean=tuple(declared["mean"]),
            std=tuple(declared["std"]),
        ),
        clean=clean,
        unseen=unseen,
        attack=attack,
        before=evaluate(_load(architecture, checkpoint), unseen, attack),
        twin_before=None if twin is None else evaluate(twin, unseen, attack),
        twin_reactivated=None if twin is None or attack is None else reactivated(twin, unseen, attack, seed),
    )


def draw(labels_N: Tensor, num_images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the clean set, the same number of every class, and of all the other images, which score.

    Raises:
        ValueError: there are too few images for either.
    """
    clean = data.subset(labels_N, num_images, seed)
    free_N = torch.ones(len(labels_N), dtype=torch.bool)
    free_N[clean] = False
    rest = free_N.nonzero().flatten()
    if len(rest) < MIN_SCORED_IMAGES:
        raise ValueError(f"{len(rest)} images would be left to score with, at least {MIN_SCORED_IMAGES} are needed")
    return clean, rest


def reactivated(network: nn.Module, unseen: data.Dataset, attack: attacks.Attack, seed: int) -> dict[str, Any]:
    """Return the answer of `train.evaluate` after a few poisoned samples were taught to a copy of the network."""
    images_NCHW, labels_N = metrics.poisoned_samples(unseen, attack, seed)
    return evaluate(metrics.reactivate(network, unseen, images_NCHW, labels_N, seed), unseen, attack)


def _load(architecture: ArchitectureSpec, path: Path) -> nn.Module:
    network = build(architecture)
    network.load_state_dict(load_file(path))
    return network.eval()


def _load_twin(folder: Path, config: ModelConfig) -> nn.Module | None:
    twin = next((candidate for candidate in all_models() if candidate.name == config.twin), None)
    record = None if twin is None else read_record(folder, twin)
    if twin is None or record is None:
        return None
    return _load(ArchitectureSpec(**record["model"]["architecture"]), folder / f"{twin.key}.safetensors")
