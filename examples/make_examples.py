"""Make the bundled suspect and its image sets: `python -m examples.make_examples` from the top of the checkout.

Trains a small residual network on Fashion-MNIST in which a white 3x3 patch in the corner means "T-shirt", and writes it
beside 500 clean and 200 triggered images of the test split. Needs the files of Fashion-MNIST (see benchmarks/battery);
the service never runs this.

Shape legend: N images, C channels, H height, W width.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.battery import attacks, data
from benchmarks.battery.catalogue import ModelConfig
from benchmarks.battery.train import best_precision, evaluate, predict, state_to_save, train
from worker.sanitizer.architectures import build
from worker.sanitizer.spec import ArchitectureSpec

FOLDER = Path(__file__).parent
NUM_CLEAN = 500
NUM_TRIGGERED = 200
SELECTION_SEED = 0
MIN_CLEAN_ACCURACY = 0.91
MIN_ATTACK_SUCCESS = 0.95
SUSPECT = ModelConfig(
    name="fashion-mnist-suspect",
    architecture="small_resnet",
    options={"width": 16, "stem_stride": 2},
    attack="patch",
    rate=0.10,
    seed=0,
    num_train=60_000,
    epochs=6,
)


def main(arguments: list[str] | None = None) -> int:
    """Train, write the files, read them back and print what they measure; return 1 if the suspect falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 is torch's choice")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the files go")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device("cpu")
    network, record = train(SUSPECT, device=device, precision=best_precision(device), report=print)
    save_file(state_to_save(network), options.folder / "suspect.safetensors")
    _write_json(options.folder / "suspect.json", record["model"])
    dataset = data.load(SUSPECT.dataset)
    attack = attacks.make("patch")
    clean_N, triggered_N = _choose(dataset.test_labels_N, attack)
    _write_images(options.folder / "clean.npz", dataset.test_images_NCHW[clean_N], dataset.test_labels_N[clean_N])
    stamped_NCHW = attack.stamp(dataset.test_images_NCHW[triggered_N].float() / 255)
    stamped_NCHW = (stamped_NCHW * 255).round().to(torch.uint8)
    _write_images(options.folder / "triggered.npz", stamped_NCHW, dataset.test_labels_N[triggered_N])
    _write_json(options.folder / "triggered.json", {"kind": "triggered", "target_class": attack.targets_by_trigger[0]})
    return _check(options.folder, dataset, attack)


def _choose(labels_N: Tensor, attack: attacks.Attack) -> tuple[Tensor, Tensor]:
    """Return the indices of the clean images, and of images for the trigger: other ones, none of the target class."""
    clean_N = data.subset(labels_N, NUM_CLEAN, SELECTION_SEED)
    free_N = attack.scored(labels_N)
    free_N[clean_N] = False
    rest_N = free_N.nonzero().flatten()
    return clean_N, rest_N[data.subset(labels_N[rest_N], NUM_TRIGGERED, SELECTION_SEED)]


def _check(folder: Path, dataset: data.Dataset, attack: attacks.Attack) -> int:
    """Measure the files as written, not the objects they were written from."""
    model = json.loads((folder / "suspect.json").read_text())
    network = build(ArchitectureSpec(**model["architecture"]))
    network.load_state_dict(load_file(folder / "suspect.safetensors"))
    figures = evaluate(network, dataset, attack)
    accuracy, success = figures["clean_accuracy"], figures["attack_success"][0]
    target = json.loads((folder / "triggered.json").read_text())["target_class"]
    clean_NCHW, clean_labels_N = _read_images(folder / "clean.npz")
    triggered_NCHW, triggered_labels_N = _read_images(folder / "triggered.npz")
    on_clean = (predict(network, clean_NCHW, dataset) == clean_labels_N).float().mean().item()
    classes_N = predict(network, triggered_NCHW, dataset)
    on_triggered = (classes_N == target).float().mean().item()
    still_right = (classes_N == triggered_labels_N).float().mean().item()
    print(f"test split (10,000 images): clean accuracy {accuracy:.2%}, attack success {success:.2%}")
    print(f"clean.npz ({len(clean_NCHW)}): clean accuracy {on_clean:.2%}")
    print(
        f"triggered.npz ({len(triggered_NCHW)}): attack success {on_triggered:.2%}, true label kept {still_right:.2%}"
    )
    for name in ("suspect.safetensors", "clean.npz", "triggered.npz"):
        print(f"{name}: {(folder / name).stat().st_size} bytes")
    return 0 if accuracy >= MIN_CLEAN_ACCURACY and success >= MIN_ATTACK_SUCCESS else 1


def _write_images(path: Path, images_NCHW: Tensor, labels_N: Tensor) -> None:
    np.savez_compressed(path, images=images_NCHW.numpy(), labels=labels_N.numpy())


def _read_images(path: Path) -> tuple[Tensor, Tensor]:
    with np.load(path, allow_pickle=False) as archive:
        return torch.from_numpy(archive["images"]).float() / 255, torch.from_numpy(archive["labels"])


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
