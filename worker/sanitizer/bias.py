"""The paper's diagnostic: in which norm of its activation map a channel gives a trigger away.

Shapes: C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from worker.sanitizer.activations import ChannelStatistics
from worker.sanitizer.criteria import standardise
from worker.sanitizer.report import LayerBias

Source = Literal["synthetic", "supplied"]


def layer_bias(
    clean: Mapping[str, ChannelStatistics], triggered: Mapping[str, ChannelStatistics], source: Source
) -> list[LayerBias]:
    """Per layer, how far its most biased channel sticks out in ℓ∞, ℓ1 and ℓ2 when the images carry a trigger.

    Per channel the difference of the norm's mean over triggered and over clean images, in robust deviations from the
    layer's median (`criteria.standardise`); per layer the largest. arXiv 2002.12162 finds the ℓ∞ bias of a backdoored
    network far above the other two.

    Args:
        clean: Statistics on clean images, by site name.
        triggered: Statistics on triggered images, of the same sites or some of them.
        source: Whose triggers they are.
    """
    rows = []
    for name, state in triggered.items():
        deviation_C = {norm: _deviation(clean[name], state, norm) for norm in ("linf", "l1", "l2")}
        rows.append(
            LayerBias(
                name=name,
                num_channels=len(deviation_C["linf"]),
                linf=round(float(deviation_C["linf"].amax()), 6),
                l1=round(float(deviation_C["l1"].amax()), 6),
                l2=round(float(deviation_C["l2"].amax()), 6),
                channel=int(deviation_C["linf"].argmax()),
                source=source,
            )
        )
    return rows


def _deviation(clean: ChannelStatistics, triggered: ChannelStatistics, norm: str) -> Tensor:
    return standardise(triggered.mean(norm) - clean.mean(norm))
