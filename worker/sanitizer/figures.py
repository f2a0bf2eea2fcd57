"""Which figures a job has, and their files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from worker.sanitizer import gradcam
from worker.sanitizer.case import Images
from worker.sanitizer.evaluate import predict
from worker.sanitizer.exhibits import Exhibits, Looks
from worker.sanitizer.network import Network, Site
from worker.sanitizer.report import MAX_ALL_FIGURES_BYTES, MAX_FIGURE_BYTES, FigureInfo
from worker.sanitizer.trigger import ANYWHERE

MEDIA_TYPE = "image/png"
NUM_EXAMPLES = 4
MAX_TRIGGER_SHEETS = 8


@dataclass(slots=True)
class _Folder:
    """Writes the pictures and remembers what they were."""

    path: Path
    written: list[FigureInfo] = field(default_factory=list)

    def add(self, name: str, title: str, data: bytes) -> None:
        size = sum(info.size_bytes for info in self.written) + len(data)
        if len(data) > MAX_FIGURE_BYTES or size > MAX_ALL_FIGURES_BYTES:
            return  # no reader would take it, and a job must not fail over a picture
        (self.path / f"{name}.png").write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        info = FigureInfo(name=name, title=title, media_type=MEDIA_TYPE, sha256=digest, size_bytes=len(data))
        self.written.append(info)


def write_all(folder: Path, exhibits: Exhibits) -> list[FigureInfo]:
    """Write every figure that there is something to show for into a folder, each as `<name>.png`.

    The network holds the tensors of `exhibits.after` afterwards.
    """
    from worker.sanitizer import plots  # noqa: PLC0415 - matplotlib: a job without figures does not pay for it

    folder.mkdir(parents=True, exist_ok=True)
    out = _Folder(folder)
    if exhibits.curve:
        data = plots.curve_plot(exhibits.curve, exhibits.num_pruned, exhibits.max_accuracy_drop)
        out.add("curve", "Clean accuracy as channels are pruned", data)
    if exhibits.bias:
        out.add(
            "bias", "How far a trigger makes channels stick out, per layer and norm", plots.bias_plot(exhibits.bias)
        )
    for rank, suspected in enumerate(exhibits.suspected[:MAX_TRIGGER_SHEETS], start=1):
        data = plots.trigger_sheet(suspected, _examples(exhibits.clean, suspected.target).pixels_NCHW)
        target, family = suspected.target, suspected.triggers.family
        named, leads = ("any", "away from every label") if target == ANYWHERE else (target, f"for class {target}")
        out.add(f"trigger-{rank}-class-{named}-{family}", f"Synthesised trigger {leads} ({family})", data)
    site = gradcam.looked_at(exhibits.network, exhibits.clean.pixels_NCHW[:NUM_EXAMPLES])
    looks = [] if site is None else _looks(exhibits, site)
    if site is not None and looks:
        out.add("gradcam", "Where the network looks, before and after", plots.gradcam_sheet(looks, site.name))
    return out.written


def _looks(exhibits: Exhibits, site: Site) -> list[Looks]:
    """Grad-CAM of clean and of triggered images on both networks; the network holds `after` afterwards."""
    target = exhibits.target_class
    if target is None and exhibits.suspected:
        target = exhibits.suspected[0].target
    clean = _examples(exhibits.clean, target)
    groups = [("clean images", clean.pixels_NCHW)]
    if exhibits.triggered is not None:
        groups.append(("supplied trigger samples", _examples(exhibits.triggered, target).pixels_NCHW))
    elif exhibits.suspected:
        first = exhibits.suspected[0]
        device = first.triggers.amount_T1HW.device
        stamped_NCHW = first.triggers.stamp(clean.pixels_NCHW.to(device), first.which).cpu()
        groups.append(("the same under the synthesised trigger", stamped_NCHW))
    groups = [(caption, pixels_NCHW) for caption, pixels_NCHW in groups if len(pixels_NCHW)]
    seen = []
    for tensors in (exhibits.before, exhibits.after):
        exhibits.network.load(tensors)
        seen.append([_look(exhibits.network, site, pixels_NCHW) for _, pixels_NCHW in groups])
    return [
        Looks(
            caption=caption,
            pixels_NCHW=pixels_NCHW,
            heat_before_NHW=before[0],
            heat_after_NHW=after[0],
            classes_before=before[1],
            classes_after=after[1],
        )
        for (caption, pixels_NCHW), before, after in zip(groups, *seen, strict=True)
    ]


def _look(network: Network, site: Site, pixels_NCHW: Tensor) -> tuple[Tensor, list[int]]:
    classes_N = predict(network, pixels_NCHW)
    heat_Nhw = gradcam.grad_cam(network, site, pixels_NCHW, classes_N)
    return gradcam.to_image_size(heat_Nhw, *pixels_NCHW.shape[2:]), classes_N.tolist()


def _examples(images: Images, target: int | None) -> Images:
    """Up to four images, of as many classes as there are, none of the target class if that can be avoided."""
    labels = [0] * len(images) if images.labels_N is None else images.labels_N.tolist()
    order, seen = [], dict.fromkeys(labels, 0)
    for position, label in enumerate(labels):
        order.append((images.labels_N is not None and label == target, seen[label], position))
        seen[label] += 1
    chosen = [position for _, _, position in sorted(order)[:NUM_EXAMPLES]]
    return images.take(torch.tensor(chosen, dtype=torch.int64))
