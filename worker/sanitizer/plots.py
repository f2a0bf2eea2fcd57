"""The pictures themselves, each a pure function from data to the bytes of a PNG file. The import takes half a second.

Shapes: N images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from worker.sanitizer import drawing
from worker.sanitizer.exhibits import Looks, Suspected
from worker.sanitizer.report import CurvePoint, LayerBias
from worker.sanitizer.trigger import ANYWHERE

MAX_LAYERS_SHOWN = 40
MAX_SHEET_INCHES = 13.0
# How much of a picture its heat may cover: the image stays recognisable below it.
HEAT_OPACITY = 0.6


def bias_plot(rows: Sequence[LayerBias]) -> bytes:
    """How far the most biased channel of each layer sticks out in ℓ∞, ℓ1 and ℓ2: the paper's diagnostic."""
    shown = list(rows)
    if len(shown) > MAX_LAYERS_SHOWN:
        strongest = sorted(range(len(rows)), key=lambda i: -rows[i].linf)[:MAX_LAYERS_SHOWN]
        shown = [rows[i] for i in sorted(strongest)]
    styles = {"linf": ("ℓ∞", drawing.VERMILION, "D"), "l1": ("ℓ1", drawing.BLUE, "o"), "l2": ("ℓ2", drawing.GREEN, "s")}

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        height = np.arange(len(shown))[::-1]
        values = {norm: [max(0.0, getattr(row, norm)) for row in shown] for norm in styles}
        low, high = (pick([values[norm] for norm in styles], axis=0) for pick in (np.min, np.max))
        axes.hlines(height, low, high, color="#CCCCCC", linewidth=2, zorder=1)
        for norm, (name, colour, marker) in styles.items():
            axes.scatter(values[norm], height, s=70, color=colour, marker=marker, label=name, zorder=3)
        axes.set_yticks(height, [drawing.label(row.name) for row in shown])
        axes.set_ylim(-0.6, len(shown) - 0.4)
        # Linear where noise lies, logarithmic beyond: one channel can stick out hundreds of deviations.
        axes.set_xscale("symlog", linthresh=10, linscale=1.0)
        ticks = [
            t for t in (0, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10_000, 100_000) if t <= max(12, 1.3 * high.max())
        ]
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlim(-0.3, max(12.0, 1.3 * high.max()))
        axes.set_xlabel("largest difference between triggered and clean images, in robust deviations of the layer")
        axes.set_ylabel("layer, in the order of execution")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=3, title="norm of the map")
        left_out = f" The {len(shown)} strongest of {len(rows)} layers." if len(shown) < len(rows) else ""
        drawing.title(
            figure,
            "In which norm a trigger makes channels stick out",
            f"Triggers: {shown[0].source}. Each mark is a layer's most biased channel; ℓ∞ far right of ℓ1 and ℓ2 is "
            f"the bias that the paper finds in backdoored networks.{left_out}",
        )

    return drawing.png(draw, height_inches=max(3.6, 2.0 + 0.34 * len(shown)))


def curve_plot(points: Sequence[CurvePoint], num_pruned: int, max_accuracy_drop: float | None) -> bytes:
    """Clean accuracy on images to choose with under each nested mask, with the budget and the chosen point."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        fraction = [100 * point.fraction for point in points]
        accuracy = [100 * point.accuracy for point in points]
        axes.plot(fraction, accuracy, color=drawing.BLUE, linewidth=2, zorder=2)
        for admissible, face, name in (
            (True, drawing.BLUE, "within the budget"),
            (False, "white", "beyond the budget"),
        ):
            there = [i for i, point in enumerate(points) if point.admissible is admissible]
            x, y = [fraction[i] for i in there], [accuracy[i] for i in there]
            axes.scatter(x, y, s=50, facecolor=face, edgecolor=drawing.BLUE, linewidth=1.6, label=name, zorder=3)
        if max_accuracy_drop is not None:
            floor = accuracy[0] - 100 * max_accuracy_drop
            name = f"lowest accuracy allowed ({floor:.1f} %)"
            axes.axhline(floor, color=drawing.FAINT, linestyle=(0, (5, 3)), linewidth=1.6, label=name, zorder=1)
        chosen = [i for i, point in enumerate(points) if point.num_pruned == num_pruned]
        if chosen:
            noun = "channel" if num_pruned == 1 else "channels"
            name = f"chosen: {num_pruned} {noun}, {accuracy[chosen[0]]:.1f} %"
            spot = ([fraction[chosen[0]]], [accuracy[chosen[0]]])
            axes.scatter(*spot, s=190, color=drawing.VERMILION, marker="D", label=name, zorder=4)
        axes.set_xlabel("channels pruned, % of those in scope")
        axes.set_ylabel("clean accuracy, % (images to choose with)")
        axes.set_ylim(*_room(accuracy))
        axes.legend(loc="lower left")
        drawing.title(
            figure,
            "What pruning costs: clean accuracy as channels are silenced",
            "Channels go in the order in which they were ranked or found, the most suspicious first.",
        )

    return drawing.png(draw, height_inches=6.0)


def trigger_sheet(suspected: Suspected, examples_NCHW: Tensor) -> bytes:
    """A synthesised trigger as a person sees it: its mask, its pattern, and what it does to some images."""
    triggers, which = suspected.triggers, suspected.which
    amount_HW = triggers.amount_T1HW[which, 0].detach().cpu().float().numpy()
    pattern_CHW = triggers.pattern_TCHW[which].detach().cpu().float()
    examples_NCHW = examples_NCHW.cpu()
    stamped_NCHW = triggers.stamp(examples_NCHW.to(triggers.amount_T1HW.device), which).cpu()
    size = float(triggers.size()[which])
    masked = triggers.family == "mask"

    def draw(figure: Figure) -> None:
        columns = 2 + max(1, len(examples_NCHW))
        grid = figure.add_gridspec(2, columns, width_ratios=[2.08, 2.08, *[1.0] * (columns - 2)])
        first, second = (figure.add_subplot(grid[:, column]) for column in (0, 1))
        if masked:
            first.imshow(amount_HW, cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
            drawing.panel(first, "mask: dark 0, yellow 1")
            drawing.picture(second, _rgb(torch.from_numpy(amount_HW) * pattern_CHW))
            drawing.panel(second, "stamped: mask × pattern")
        else:
            largest = max(float(pattern_CHW.abs().max()), 1e-12)
            change_HW = pattern_CHW.mean(dim=0).numpy()
            first.imshow(change_HW, cmap="PuOr", vmin=-largest, vmax=largest, interpolation="nearest")
            drawing.panel(first, f"−{largest:.2g} orange, +{largest:.2g} purple")
            drawing.picture(second, _rgb(0.5 + 0.5 * pattern_CHW / largest))
            drawing.panel(second, f"the same on grey, × {0.5 / largest:.1f}")
        for column, (clean_CHW, stamped_CHW) in enumerate(zip(examples_NCHW, stamped_NCHW, strict=True), start=2):
            for row, (image_CHW, name) in enumerate(((clean_CHW, "clean"), (stamped_CHW, "with trigger"))):
                axes = figure.add_subplot(grid[row, column])
                drawing.picture(axes, _rgb(image_CHW))
                axes.set_title(name, fontsize=11)
        detail = _trigger_detail(suspected, size, amount_HW.size)
        leads = "away from every label" if suspected.target == ANYWHERE else f"to class {suspected.target}"
        drawing.title(figure, f"A synthesised trigger that leads {leads}", detail)

    return drawing.png(draw, height_inches=4.5)


def gradcam_sheet(looks: Sequence[Looks], layer: str) -> bytes:
    """A few images, and over each where the network looked for its answer, before and after."""

    def draw(figure: Figure) -> None:
        parts = figure.subfigures(1, len(looks), squeeze=False)[0]
        for part, look in zip(parts, looks, strict=True):
            part.suptitle(look.caption, fontsize=13)
            axes_RN = part.subplots(3, len(look.pixels_NCHW), squeeze=False)
            for column, pixels_CHW in enumerate(look.pixels_NCHW):
                image_HWC = _rgb(pixels_CHW)
                drawing.picture(axes_RN[0, column], image_HWC)
                for row, heat_NHW, classes in (
                    (1, look.heat_before_NHW, look.classes_before),
                    (2, look.heat_after_NHW, look.classes_after),
                ):
                    drawing.picture(axes_RN[row, column], _overlay(image_HWC, heat_NHW[column].numpy()))
                    moved = look.classes_before[column] != look.classes_after[column]
                    weight = "bold" if moved else "normal"
                    axes_RN[row, column].set_title(f"says {classes[column]}", fontsize=12, fontweight=weight)
            for row, name in enumerate(("image", "before", "after")):
                axes_RN[row, 0].set_ylabel(name, fontsize=13)
        drawing.title(
            figure,
            "Where the network looks for its answer, before and after",
            f"Grad-CAM on {drawing.label(layer)}, for the class that the network says. Yellow: speaks for that class "
            "most (each image on its own scale). Bold: the answer changed.",
        )

    widest = max(len(look.pixels_NCHW) for look in looks)
    height_inches = 2.0 + 3 * 10.5 / (len(looks) * max(2, widest)) * 1.12
    return drawing.png(draw, height_inches=min(height_inches, MAX_SHEET_INCHES))


def _trigger_detail(suspected: Suspected, size: float, num_pixels: int) -> str:
    success = ""
    if suspected.success is not None:
        success = f" On the unrepaired network it sends {suspected.success:.0%} of clean images there (an estimate)."
    if suspected.triggers.family == "mask":
        return f"Its mask adds up to {size:.1f} of {num_pixels} pixels.{success}"
    norm = "ℓ∞" if suspected.triggers.family == "linf" else "ℓ2"
    return f"One change for all images, of {norm} norm {size:.3g} in units of the full brightness.{success}"


def _rgb(image_CHW: Tensor) -> NDArray[np.float32]:
    """An image as people see it, (H, W, 3): colours as they are, anything but three channels as grey."""
    if len(image_CHW) != 3:
        image_CHW = image_CHW.mean(dim=0, keepdim=True).expand(3, -1, -1)
    return image_CHW.permute(1, 2, 0).float().clamp(0, 1).numpy()


def _overlay(image_HWC: NDArray[np.float32], heat_HW: NDArray[Any]) -> NDArray[np.float32]:
    """The image in grey below its heat; the hotter, the less of the image is seen."""
    grey_HW1 = image_HWC.mean(axis=2, keepdims=True)
    heat_HW = np.nan_to_num(heat_HW)
    colour_HWC = colormaps["inferno"](0.15 + 0.8 * heat_HW)[..., :3]
    opacity_HW1 = HEAT_OPACITY * np.sqrt(heat_HW)[..., None]
    blended_HWC: NDArray[np.float32] = ((1 - opacity_HW1) * grey_HW1 + opacity_HW1 * colour_HWC).astype(np.float32)
    return blended_HWC


def _room(values: Sequence[float]) -> tuple[float, float]:
    """Axis limits around some percentages."""
    low, high = min(values), max(values)
    margin = max(1.0, 0.08 * (high - low))
    return max(-2.0, low - margin), min(102.0, high + margin)
