"""What the figures of a report show: plain data, collected while a job runs.

Shapes: N images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worker.sanitizer.case import Images
from worker.sanitizer.network import Network
from worker.sanitizer.report import CurvePoint, LayerBias
from worker.sanitizer.trigger import Triggers

# That are profiled under one trigger, at most.
IMAGES_PER_TRIGGER = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspected:
    """A synthesised trigger worth showing.

    Attributes:
        triggers: Some triggers of one family.
        which: Which of them.
        success: The share of clean images that it sends to its class, on the unrepaired network; None if unknown.
    """

    triggers: Triggers
    which: int
    success: float | None = None

    @property
    def target(self) -> int:
        """The class that it leads to."""
        return int(self.triggers.targets_T[self.which])

    @property
    def trigger(self) -> Triggers:
        """It alone."""
        return self.triggers.take([self.which])

    def stamped(self, images: Images) -> Images:
        """Some of the images under it, on the trigger's device: evenly spaced, since images often come sorted."""
        number = min(IMAGES_PER_TRIGGER, len(images))
        some = images.take(torch.arange(number) * len(images) // number)
        seen_NCHW = some.pixels_NCHW.to(self.triggers.amount_T1HW.device)
        return replace(some, pixels_NCHW=self.triggers.stamp(seen_NCHW, self.which))


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhibits:
    """All that the figures show. Where something is empty or None its figure is left out.

    Attributes:
        network: The network; `write_all` leaves the tensors of `after` in it.
        before: The suspect's tensors by name, in any dtype.
        after: The result's tensors by name, in any dtype.
        clean: Clean labelled images, held out; a few are shown.
        triggered: Trigger samples, held out; None shows clean images under the first of `suspected` instead.
        target_class: Where the supplied trigger leads, if known: images of that class are not shown.
        suspected: Synthesised triggers, the most suspicious first.
        bias: The bias of each layer.
        curve: The sweep.
        num_pruned: The chosen point of the curve.
        max_accuracy_drop: The budget that the choice kept to, a share.
    """

    network: Network
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    clean: Images
    triggered: Images | None = None
    target_class: int | None = None
    suspected: Sequence[Suspected] = ()
    bias: Sequence[LayerBias] = ()
    curve: Sequence[CurvePoint] = ()
    num_pruned: int = 0
    max_accuracy_drop: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Looks:
    """What Grad-CAM says of a few images: pixels, per network a heat in [0, 1] and the predicted class.

    Attributes:
        caption: What kind of images they are.
        pixels_NCHW: The images.
        heat_before_NHW: On the suspect.
        heat_after_NHW: On the result.
        classes_before: What the suspect says.
        classes_after: What the result says.
    """

    caption: str
    pixels_NCHW: Tensor
    heat_before_NHW: Tensor
    heat_after_NHW: Tensor
    classes_before: Sequence[int]
    classes_after: Sequence[int]
