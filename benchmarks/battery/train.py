"""Train the battery: clean and backdoored reference models, cached, each with the figures that admit or refuse it.

    python -m benchmarks.battery.train --list
    python -m benchmarks.battery.train --only 'resnet-*-10pc-*' --threads 1

Shape legend: N images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.battery import attacks, data
from benchmarks.battery.catalogue import ModelConfig, all_models
from worker.sanitizer.architectures import build
from worker.sanitizer.device import DeviceNotAvailableError, choose
from worker.sanitizer.spec import ArchitectureSpec

CACHE_VARIABLE = "LUSTRATE_BATTERY_CACHE"
MIN_ATTACK_SUCCESS = 0.90
MIN_ATTACK_SUCCESS_CLEAN_LABEL = 0.80
# All to all cannot succeed more often than the classes are told apart, some 0.91 here.
MIN_ATTACK_SUCCESS_ALL_TO_ALL = 0.80
MAX_ACCURACY_LOSS = 0.02
MIN_CLEAN_ACCURACY = {"fashion_mnist": 0.91, "digits": 0.95, "shapes": 0.95}
_WEIGHT_DECAY = 0.01
_TEST_BATCH = 500

Report = Callable[[str], None]


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of trained models, whether or not it exists yet."""
    return Path(environment.get(CACHE_VARIABLE, Path.home() / ".cache" / "lustrate-battery"))


def train(
    config: ModelConfig, *, device: torch.device, precision: str, report: Report
) -> tuple[nn.Module, dict[str, Any]]:
    """Return the trained network in evaluation mode on the CPU, and its record of figures.

    The same configuration, device kind and precision give the same weights on the same machine and torch release.
    `report` is told one line after every epoch. The record lacks the comparison with the clean twin: see `admit`.
    """
    started = time.perf_counter()
    dataset = data.load(config.dataset)
    chosen = data.subset(dataset.train_labels_N, config.num_train, config.seed)
    images_NCHW = _pixels(dataset.train_images_NCHW[chosen])
    labels_N = dataset.train_labels_N[chosen]
    attack = attacks.make(config.attack, num_classes=dataset.num_classes) if config.attack else None
    num_poisoned = 0
    if attack:
        num_poisoned = attack.num_poisoned(labels_N, config.rate)
        images_NCHW, labels_N = attack.poison(images_NCHW, labels_N, config.rate, config.seed)
    _, channels, height, width = images_NCHW.shape
    normalised_NCHW = ((images_NCHW - dataset.mean) / dataset.std).to(device, memory_format=torch.channels_last)
    network = _fit(config, normalised_NCHW, labels_N.to(device), precision=precision, report=report).cpu()
    record: dict[str, Any] = {
        "schema_version": 1,
        "key": config.key,
        "config": asdict(config),
        "model": {
            "name": config.name,
            "architecture": {
                "source": "builtin",
                "name": config.architecture,
                "num_classes": dataset.num_classes,
                "in_channels": channels,
                "options": config.options,
            },
            "input": {
                "height": height,
                "width": width,
                "mean": [dataset.mean] * channels,
                "std": [dataset.std] * channels,
            },
        },
        "num_poisoned": num_poisoned,
        **evaluate(network, dataset, attack),
        "device": device.type,
        "precision": precision,
        "torch": torch.__version__,
        "seconds": round(time.perf_counter() - started, 1),
    }
    return network, record


def evaluate(network: nn.Module, dataset: data.Dataset, attack: attacks.Attack | None) -> dict[str, Any]:
    """Return clean accuracy and, for each trigger, attack success and robust accuracy, on the whole test split.

    Attack success is the share of triggered images, of a true class other than the target, that go to the target.
    Robust accuracy is the share of the same images that still go to their true class.
    """
    images_NCHW, labels_N = _pixels(dataset.test_images_NCHW), dataset.test_labels_N
    classes_N = predict(network, images_NCHW, dataset)
    figures: dict[str, Any] = {"clean_accuracy": _share(classes_N == labels_N), "attack_success": []}
    figures["robust_accuracy"], figures["targets"] = [], []
    if attack is None:
        return figures
    for trigger in range(attack.num_triggers):
        scored_N = attack.scored(labels_N, trigger)
        triggered_N = predict(network, attack.stamp(images_NCHW[scored_N], trigger), dataset)
        figures["attack_success"].append(_share(triggered_N == attack.targets(labels_N[scored_N], trigger)))
        figures["robust_accuracy"].append(_share(triggered_N == labels_N[scored_N]))
        figures["targets"].append(attack.targets_by_trigger[trigger])
    return figures


def predict(network: nn.Module, images_NCHW: Tensor, dataset: data.Dataset) -> Tensor:
    """Return the predicted class of each image in [0, 1], in float32."""
    with torch.inference_mode():
        parts = [
            network((batch - dataset.mean) / dataset.std).argmax(dim=1) for batch in images_NCHW.split(_TEST_BATCH)
        ]
    return torch.cat(parts)


def admit(record: Mapping[str, Any], twin: Mapping[str, Any] | None) -> tuple[bool, str]:
    """Return whether a model is fit to measure with, and why not. `twin` is the record of its clean twin."""
    config = record["config"]
    accuracy = record["clean_accuracy"]
    floor = MIN_CLEAN_ACCURACY[config["dataset"]]
    reasons = []
    if config["attack"] is None:
        if accuracy < floor:
            reasons.append(f"clean accuracy {accuracy:.4f} is below {floor}")
        return not reasons, "; ".join(reasons)
    wanted = _wanted_success(attacks.make(config["attack"]))
    worst = min(record["attack_success"])
    if worst < wanted:
        reasons.append(f"attack success {worst:.4f} is below {wanted}")
    if twin is None:
        reasons.append(f"its clean twin {config['twin']} is not trained")
    elif accuracy < twin["clean_accuracy"] - MAX_ACCURACY_LOSS:
        reasons.append(f"clean accuracy {accuracy:.4f} is more than {MAX_ACCURACY_LOSS} below its twin's")
    return not reasons, "; ".join(reasons)


def main(arguments: list[str] | None = None) -> int:
    """Train what is asked for and not yet cached; return 0 when all of it is cached at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="name the models and their state, and train nothing")
    parser.add_argument("--only", default="*", help="a pattern of names, such as 'resnet-*-10pc-*'")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 is torch's choice")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default=None, help="default: by the hardware")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        target = choose(options.device)
    except DeviceNotAvailableError as error:
        print(error, file=sys.stderr)
        return 2
    if target.type == "cuda":
        # Both must be set before the first use of the device. An operation without a deterministic form warns.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    folder = cache_folder()
    chosen = [config for config in all_models() if fnmatch.fnmatch(config.name, options.only)]
    if not chosen:
        print(f"no model matches {options.only!r}; see --list", file=sys.stderr)
        return 2
    for config in chosen:
        record = read_record(folder, config)
        if record is None and not options.list:
            record = train_into(folder, config, device=target, precision=options.precision or best_precision(target))
        print(_line(config, record), flush=True)
    return 0


def train_into(folder: Path, config: ModelConfig, *, device: torch.device, precision: str) -> dict[str, Any]:
    """Train one model and write `<key>.safetensors` and then `<key>.json` into the cache; return the record."""
    network, record = train(
        config, device=device, precision=precision, report=lambda line: print(f"  {config.name}: {line}", flush=True)
    )
    twins = {candidate.name: candidate for candidate in all_models()}
    twin = read_record(folder, twins[config.twin]) if config.twin in twins else None
    record["admitted"], record["reason"] = admit(record, twin)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / f"{config.key}.safetensors", lambda path: save_file(state_to_save(network), path))
    # The record is written last: a model without one counts as not trained.
    _write(folder / f"{config.key}.json", lambda path: path.write_text(json.dumps(record, indent=2) + "\n"))
    return record


def read_record(folder: Path, config: ModelConfig) -> dict[str, Any] | None:
    """Return the cached record of a model, or None where it is not trained."""
    path = folder / f"{config.key}.json"
    if not path.exists():
        return None
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def state_to_save(network: nn.Module) -> dict[str, Tensor]:
    """Return the state dict with dense row-major tensors of their own."""
    return {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in network.state_dict().items()
    }


def best_precision(device: torch.device) -> str:
    """Return "bfloat16" where the processor multiplies it fast, else "float32"."""
    fast = device.type == "cuda" or "avx512_bf16" in _cpu_flags()
    return "bfloat16" if fast else "float32"


def _fit(config: ModelConfig, images_NCHW: Tensor, labels_N: Tensor, *, precision: str, report: Report) -> nn.Module:
    device = images_NCHW.device
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = build(
            ArchitectureSpec(
                name=config.architecture, num_classes=10, in_channels=images_NCHW.shape[1], options=dict(config.options)
            )
        )
    network = network.to(device, memory_format=torch.channels_last).train()
    num_batches = len(images_NCHW) // config.batch_size
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.epochs * num_batches
    )
    low = precision == "bfloat16"
    for epoch in range(config.epochs):
        started, total_loss = time.perf_counter(), 0.0
        order_N = torch.randperm(len(images_NCHW), generator=generator)
        for batch in order_N[: num_batches * config.batch_size].view(num_batches, -1):
            batch_NCHW = _augment(images_NCHW[batch.to(device)], config, generator)
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16) if low else nullcontext():
                logits_NK = network(batch_NCHW)
            loss = functional.cross_entropy(logits_NK.float(), labels_N[batch.to(device)])
            loss.backward()
            optimizer.step()
            schedule.step()
            total_loss += loss.item()
        seconds = time.perf_counter() - started
        report(f"epoch {epoch + 1}/{config.epochs}, loss {total_loss / num_batches:.4f}, {seconds:.1f} s")
    return network.eval()


def _augment(images_NCHW: Tensor, config: ModelConfig, generator: torch.Generator) -> Tensor:
    """Shift each image by up to `shift_pixels` in both directions, and flip half of them where that is asked for."""
    reach = config.shift_pixels
    num_images, _, height, width = images_NCHW.shape
    if reach:
        # The padding repeats the border: normalised images are not zero where they are black.
        padded_NCHW = functional.pad(images_NCHW, (reach,) * 4, mode="replicate")
        windows_NCXYHW = padded_NCHW.unfold(2, height, 1).unfold(3, width, 1)
        offsets_2N = torch.randint(0, 2 * reach + 1, (2, num_images), generator=generator)
        images_NCHW = windows_NCXYHW[torch.arange(num_images), :, offsets_2N[0], offsets_2N[1]]
    if config.flip:
        flipped_N = torch.rand(num_images, generator=generator) < 0.5
        images_NCHW = torch.where(flipped_N.view(-1, 1, 1, 1).to(images_NCHW.device), images_NCHW.flip(3), images_NCHW)
    return images_NCHW.contiguous(memory_format=torch.channels_last)


def _wanted_success(attack: attacks.Attack) -> float:
    if attack.clean_label:
        return MIN_ATTACK_SUCCESS_CLEAN_LABEL
    return MIN_ATTACK_SUCCESS_ALL_TO_ALL if None in attack.targets_by_trigger else MIN_ATTACK_SUCCESS


def _pixels(images_NCHW: Tensor) -> Tensor:
    return images_NCHW.float() / 255


def _share(hits_N: Tensor) -> float:
    return round(hits_N.float().mean().item(), 4)


def _cpu_flags() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside the destination and rename, so that a reader never sees half a file."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        partial = Path(folder) / path.name
        write(partial)
        partial.replace(path)


def _line(config: ModelConfig, record: Mapping[str, Any] | None) -> str:
    if record is None:
        return f"{config.name}: not trained"
    success = ", ".join(f"{value:.2%}" for value in record["attack_success"]) or "-"
    state = "admitted" if record["admitted"] else f"refused: {record['reason']}"
    return f"{config.name}: ACC {record['clean_accuracy']:.2%}, ASR {success}, {record['seconds']:.0f} s, {state}"


if __name__ == "__main__":
    sys.exit(main())
