"""The bundled suspect in every format, and what a job makes of each.

Shapes: N images, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.trips import runtimes
from benchmarks.trips.trip import difference
from worker.sanitizer import checkpoint as checkpoints
from worker.sanitizer.architectures import build
from worker.sanitizer.report import Report
from worker.sanitizer.sanitize import sanitize
from worker.sanitizer.spec import ArchitectureSpec, InputSpec, SanitizeSpec

EXAMPLES = Path(__file__).parents[2] / "examples"
_DESCRIBED = json.loads((EXAMPLES / "suspect.json").read_text(encoding="utf-8"))
ARCHITECTURE = ArchitectureSpec(**_DESCRIBED["architecture"])
INPUT = InputSpec(
    **{key: tuple(value) if isinstance(value, list) else value for key, value in _DESCRIBED["input"].items()}
)
FROM_FILE = ArchitectureSpec(source="file", num_classes=ARCHITECTURE.num_classes, in_channels=ARCHITECTURE.in_channels)
TARGET_CLASS = json.loads((EXAMPLES / "triggered.json").read_text(encoding="utf-8"))["target_class"]
# A batch of another number than those that jobs run, so that one that was baked in shows.
_TRACED = 2


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one format's job gave.

    Attributes:
        report: Of the job.
        before_NK: Logits of the upload in its own library.
        after_NK: Logits of the download there.
    """

    report: Report
    before_NK: Tensor
    after_NK: Tensor

    @property
    def pruned(self) -> list[list[int]]:
        """The silenced channels of each site in the order of the graph: names differ between formats."""
        return [layer.pruned_channels for layer in self.report.layers]


def module() -> nn.Module:
    """The suspect."""
    made = build(ARCHITECTURE)
    made.load_state_dict(checkpoints.read(EXAMPLES / "suspect.safetensors").tensors)
    return made.eval()


def images() -> Tensor:
    """Normalised: the clean set, and behind it the images with the trigger."""
    sets = [np.load(EXAMPLES / name)["images"] for name in ("clean.npz", "triggered.npz")]
    pixels_NCHW = torch.from_numpy(np.concatenate(sets)).float() / 255
    mean_1C11, std_1C11 = (torch.tensor(value).view(1, -1, 1, 1) for value in (INPUT.mean, INPUT.std))
    return (pixels_NCHW - mean_1C11) / std_1C11


def write(kind: str, folder: Path) -> Path:
    """The suspect as the owner of its code would save it in this format."""
    path = folder / f"suspect-{kind}.{runtimes.SUFFIXES.get(kind, kind)}"
    if kind == "safetensors":
        path.write_bytes((EXAMPLES / "suspect.safetensors").read_bytes())
    else:
        zeros_NCHW = torch.zeros(_TRACED, ARCHITECTURE.in_channels, INPUT.height, INPUT.width)
        runtimes.quietly(lambda: runtimes.write(kind, module(), path, zeros_NCHW, is_free=True))
    return path


def run(kind: str, folder: Path, spec: SanitizeSpec) -> Outcome:
    """Sanitize the suspect in this format, and load both files where they come from."""
    upload = write(kind, folder)
    download = upload.with_name(f"sanitized-{upload.name}")
    report = sanitize(
        checkpoint_path=upload,
        clean_path=EXAMPLES / "clean.npz",
        triggered_path=EXAMPLES / "triggered.npz",
        target_class=TARGET_CLASS,
        output_path=download,
        architecture=ARCHITECTURE if kind in {"safetensors", "pth"} else FROM_FILE,
        input_spec=INPUT,
        spec=spec,
    )
    images_NCHW = images()
    before_NK, after_NK = (_logits(kind, path, images_NCHW) for path in (upload, download))
    return Outcome(report, before_NK, after_NK)


def _logits(kind: str, path: Path, images_NCHW: Tensor) -> Tensor:
    if kind not in {"safetensors", "pth"}:
        return runtimes.load(kind, path, module).run(images_NCHW, {})
    # What is around the state dict differs from file to file; what is in it is the reader's, checked elsewhere.
    loaded = module()
    loaded.load_state_dict(checkpoints.read(path).tensors)
    with torch.inference_mode():
        logits_NK: Tensor = loaded(images_NCHW)
    return logits_NK


def page(outcomes: Mapping[str, Outcome], seconds: Mapping[str, float]) -> list[list[str]]:
    """One row for each format, held against the first one."""
    reference = next(iter(outcomes.values()))
    return [_row(kind, outcome, reference, seconds[kind]) for kind, outcome in outcomes.items()]


HEADER = (
    *("format", "verdict", "class", "score", "repair", "channels pruned", "of them as in the first row"),
    *("ACC before", "ACC after", "ASR before", "ASR after"),
    *("same answers", "upload's logits differ", "download's logits differ", "seconds"),
)


def _row(kind: str, outcome: Outcome, reference: Outcome, seconds: float) -> list[str]:
    report = outcome.report
    mine, theirs = _pairs(outcome.pruned), _pairs(reference.pruned)
    score = report.verdict.score
    accuracy, success = report.accuracy, report.attack_success
    assert success.before is not None
    assert success.after is not None
    same = float((outcome.after_NK.argmax(1) == reference.after_NK.argmax(1)).double().mean())
    return [
        f"`{kind}`",
        report.verdict.verdict,
        ", ".join(map(str, report.verdict.target_classes)) or "-",
        "-" if score is None else f"{score:.4f}",
        report.repair.status,
        str(len(mine)),
        f"{len(mine & theirs)} of {len(theirs)}",
        *(f"{one.value:.1%}" for one in (accuracy.before, accuracy.after, success.before, success.after)),
        f"{same:.1%}",
        f"{difference(outcome.before_NK, reference.before_NK):.1e}",
        f"{difference(outcome.after_NK, reference.after_NK):.1e}",
        f"{seconds:.0f}",
    ]


def _pairs(pruned: Sequence[Sequence[int]]) -> set[tuple[int, int]]:
    return {(position, channel) for position, channels in enumerate(pruned) for channel in channels}
