"""The sliding windows of convolutions and pools: kernel, stride, dilation and padding, however ONNX says them."""

from __future__ import annotations

from dataclasses import dataclass

from worker.sanitizer.programs.onnx_call import Call
from worker.sanitizer.programs.onnx_values import Value


@dataclass(frozen=True, slots=True)
class Window:
    """Per spatial dimension; `before` and `after` are the padding on either side."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    before: list[int]
    after: list[int]

    def torch_pads(self) -> list[int]:
        """The padding as torch takes it: pairs, from the last dimension."""
        return [size for pair in reversed(list(zip(self.before, self.after, strict=True))) for size in pair]

    def reach(self, axis: int) -> int:
        """How far the window extends, dilation included."""
        return (self.kernel[axis] - 1) * self.dilations[axis] + 1


def window(call: Call, images: Value, kernel: list[int]) -> Window:
    """The window of a node that slides over `images` (N, C, ...)."""
    number = images.rank - 2
    strides = call.wholes("strides") or [1] * number
    dilations = call.wholes("dilations") or [1] * number
    pads = call.wholes("pads") or [0] * 2 * number
    sizes_fit = len(kernel) == len(strides) == len(dilations) == number and len(pads) == 2 * number
    if not sizes_fit or min(kernel + strides + dilations, default=0) < 1 or min(pads, default=0) < 0:
        raise call.builder.refusal("has a kernel, strides, dilations or pads that do not fit its input")
    automatic = call.text("auto_pad", "NOTSET")
    plain = Window(kernel, strides, dilations, pads[:number], pads[number:])
    if automatic == "NOTSET":
        return plain
    if automatic == "VALID":
        return Window(kernel, strides, dilations, [0] * number, [0] * number)
    if automatic not in {"SAME_UPPER", "SAME_LOWER"}:
        raise call.builder.refusal("has an unknown auto_pad")
    less, more = [], []
    for axis in range(number):
        size = call.builder.extent(images, axis + 2)
        total = max(0, (-(-size // strides[axis]) - 1) * strides[axis] + plain.reach(axis) - size)
        less.append(total // 2)
        more.append(total - total // 2)
    before, after = (less, more) if automatic == "SAME_UPPER" else (more, less)
    return Window(kernel, strides, dilations, before, after)
