"""A place whose channels can be silenced, and the slices of tensors that belong to each of them.

Shapes: N images, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["conv", "norm", "linear", "head"]


@dataclass(frozen=True, slots=True)
class Rows:
    """The slices of one tensor that channels own: channel c has `block` of them, from `start + c * stride` on.

    Attributes:
        tensor: State-dict name.
        axis: Along which the slices lie.
        start: Of channel 0.
        block: Slices of a channel: 1, or the width of an attention head.
        stride: From one channel to the next.
    """

    tensor: str
    axis: int = 0
    start: int = 0
    block: int = 1
    stride: int = 1

    def index(self, channels: Tensor) -> tuple[slice | Tensor, ...]:
        """What to index the tensor with for these channels' slices."""
        first_C1 = (self.start + self.stride * channels).unsqueeze(1)
        rows = (first_C1 + torch.arange(self.block, device=channels.device)).flatten()
        return (*[slice(None)] * self.axis, rows)

    def factor(self, value_C: Tensor, like: Tensor) -> Tensor:
        """What the tensor is multiplied by when each channel is multiplied by its value: 1 outside of the slices."""
        if self.start == 0 and self.block == self.stride == 1 and len(value_C) == like.shape[self.axis]:
            rows = value_C
        else:
            ones = torch.ones(like.shape[self.axis], dtype=value_C.dtype, device=value_C.device)
            index = self.index(torch.arange(len(value_C), device=value_C.device))[-1]
            assert isinstance(index, Tensor)
            rows = ones.index_put((index,), value_C.repeat_interleave(self.block))
        return rows.view(-1, *[1] * (like.dim() - 1 - self.axis))


@dataclass(frozen=True, slots=True)
class Site:
    """A place whose channels can be silenced: a layer with its norm, a norm on a residual stream, or attention heads.

    Attributes:
        name: State-dict path of the layer, e.g. `layer1.0.conv1`.
        kind: `conv`; `linear` for the hidden channels of a multilayer perceptron; `head` for attention heads, named
            after the layer that makes their values; `norm` for a norm that no single layer feeds.
        num_channels: C.
        tap: Graph node whose value is the activation map; `maps` brings it into the form (N, C, ...).
        owned: Slices that belong to channel c alone; all zero makes the tap's channel c zero.
        scale: Those that a soft mask multiplies (norm scale and shift, else weight and bias).
        norm: Batch-norm prefix in the state dict, None without one.
        weight: The convolution's weight name, None for other layers, where it is computed rather than stored, and
            where a norm that depends on the image takes its size away.
        norm_input: Graph node whose value (N, C, H, W) the batch norm reads, None without one.
        norm_eps: What the batch norm adds to the variance under its root.
        axis: The channels' axis in the tap's value.
        parts: Into how many equal parts along its first axis the tap's value has each image cut, e.g. into windows.
        is_patch_embedding: Whether it only cuts the image up: a convolution whose stride is its kernel's size.
        feeds_gate: Whether it is the first of the two layers that make a gate, e.g. of squeeze and excitation.
    """

    name: str
    kind: Kind
    num_channels: int
    tap: str
    owned: tuple[Rows, ...]
    scale: tuple[Rows, ...]
    norm: str | None = None
    weight: str | None = None
    norm_input: str | None = None
    norm_eps: float = 0.0
    axis: int = 1
    parts: int = 1
    is_patch_embedding: bool = False
    feeds_gate: bool = False

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of the tensors of which a channel owns slices."""
        return tuple(rows.tensor for rows in self.owned)

    def maps(self, value: Tensor) -> Tensor:
        """The tap's value as activation maps (N, C, ...), the rest being positions, at least one axis of them."""
        axis = self.axis
        if self.parts > 1:  # The parts of an image follow one another, as every partition by reshaping leaves them.
            value, axis = value.reshape(-1, self.parts, *value.shape[1:]), axis + 1
        maps_NC = value if axis == 1 else value.movedim(axis, 1)
        return maps_NC.unsqueeze(2) if maps_NC.dim() == 2 else maps_NC
