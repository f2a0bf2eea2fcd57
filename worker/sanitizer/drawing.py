"""Draw with matplotlib, one way for all figures: no global state left, no fonts but its own, the same bytes each time.

Importing this imports matplotlib, which takes half a second: only what draws does.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

WIDTH_INCHES = 12.0
DPI = 100  # 1200 pixels wide
MAX_LABEL = 44
MAX_LINE = 140

# Okabe and Ito's palette, which every kind of colour vision tells apart; shapes differ as well.
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
INK, FAINT = "#222222", "#8A8A8A"

_STYLE: dict[Any, Any] = {
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 13,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "grid.color": "#E4E4E4",
    "legend.frameon": False,
    "legend.fontsize": 12,
    "text.color": INK,
    # A layer's name is text; `$` in it is no formula.
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


@contextmanager
def style() -> Iterator[None]:
    """Within the block our style holds, whatever a matplotlibrc on this machine says; afterwards what held before."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def png(draw: Callable[[Figure], None], *, height_inches: float) -> bytes:
    """The PNG file of what `draw` puts on an empty figure, 1200 pixels wide."""
    with style():
        figure = Figure(figsize=(WIDTH_INCHES, height_inches), dpi=DPI, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        buffer = io.BytesIO()
        # Without the version in the file, which says nothing to a reader and changes the bytes.
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def title(figure: Figure, text: str, detail: str) -> None:
    """What is seen, in a sentence, and below it how to read it."""
    figure.suptitle(text, x=0.01, ha="left", fontsize=16, fontweight="bold")
    figure.supxlabel(textwrap.fill(detail, MAX_LINE), x=0.01, ha="left", fontsize=11.5, color="#444444")


def panel(axes: Axes, name: str) -> None:
    """A large picture with no axes, at the top of its cell, and what it shows."""
    bare(axes)
    axes.set_anchor("N")
    axes.set_title(name, fontsize=12)


def label(text: str) -> str:
    """A name that may come from an upload, as text that the font has and that fits."""
    plain = "".join(char if char.isascii() and char.isprintable() else "?" for char in text)
    return plain if len(plain) <= MAX_LABEL else f"{plain[: MAX_LABEL // 2 - 1]}...{plain[-MAX_LABEL // 2 + 2 :]}"


def picture(axes: Axes, image_HWC: NDArray[np.float32]) -> None:
    """Show an RGB image in [0, 1] with its pixels as squares and no axes."""
    axes.imshow(np.clip(image_HWC, 0, 1), interpolation="nearest")
    bare(axes)


def bare(axes: Axes) -> None:
    """No ticks, no grid, a thin frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set(visible=True, color=FAINT, linewidth=0.8)
