"""One node of an ONNX graph with the values of its inputs, as an operator's builder sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.sanitizer.programs.onnx_builder import Builder
from worker.sanitizer.programs.onnx_file import OnnxNode
from worker.sanitizer.programs.onnx_values import Value


@dataclass(frozen=True, slots=True)
class Call:
    """A node, the values of its inputs (None where left out), and how often each of them is read in the whole graph."""

    builder: Builder
    node: OnnxNode
    opset: int
    inputs: tuple[Value | None, ...]
    uses: Mapping[str, int]
    declared_batch: int | None

    def has(self, index: int) -> bool:
        """Whether an input is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def get(self, index: int) -> Value | None:
        """An input that may be left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def input(self, index: int) -> Value:
        """An input that must be there."""
        value = self.get(index)
        if value is None:
            raise self.builder.refusal(f"lacks input {index}")
        return value

    def whole(self, name: str, default: int) -> int:
        """An attribute that is a whole number."""
        value = self.node.attributes.get(name, default)
        if type(value) is not int:
            raise self._malformed(name)
        return value

    def real(self, name: str, default: float) -> float:
        """An attribute that is a number."""
        value = self.node.attributes.get(name, default)
        if type(value) not in (int, float):
            raise self._malformed(name)
        return float(value)  # type: ignore[arg-type]

    def text(self, name: str, default: str) -> str:
        """An attribute that is a word."""
        value = self.node.attributes.get(name, default)
        if not isinstance(value, str):
            raise self._malformed(name)
        return value

    def wholes(self, name: str) -> list[int] | None:
        """An attribute that is a list of whole numbers, None where it is left out."""
        value = self.node.attributes.get(name)
        if value is None:
            return None
        if not isinstance(value, tuple) or not all(type(item) is int for item in value):
            raise self._malformed(name)
        return [int(item) for item in value]

    def reals(self, name: str) -> list[float] | None:
        """An attribute that is a list of numbers, None where it is left out."""
        value = self.node.attributes.get(name)
        if value is None:
            return None
        if not isinstance(value, tuple):
            raise self._malformed(name)
        return [float(item) for item in value]

    def tensor(self, name: str) -> Tensor | None:
        """An attribute that is a tensor, None where it is left out."""
        value = self.node.attributes.get(name)
        if value is not None and not isinstance(value, Tensor):
            raise self._malformed(name)
        return value

    def axes(self, index: int) -> list[int] | None:
        """Axes, which newer opsets take as an input and older ones as an attribute; None where they are left out."""
        value = self.get(index)
        return self.wholes("axes") if value is None else self.builder.ints(value)

    def axis(self, value: Value, default: int) -> int:
        """The attribute `axis`, counted from the front."""
        return self.front(value, self.whole("axis", default))

    def front(self, value: Value, axis: int) -> int:
        """An axis of a value counted from the front."""
        if not -value.rank <= axis < max(value.rank, 1):
            raise self.builder.refusal(f"names the axis {axis} of a value of {value.rank} dimensions")
        return axis % max(value.rank, 1)

    def read_once(self, index: int) -> bool:
        """Whether nothing else reads this input."""
        return self.uses.get(self.node.inputs[index], 0) == 1

    def _malformed(self, name: str) -> Exception:
        return self.builder.refusal(f"has a malformed attribute {name!r}")


Handler = Callable[[Call], Value | list[Value]]


def is_float(value: Value) -> bool:
    """Whether a value is floating-point."""
    return value.samples[0].is_floating_point()


def dtype_of(value: Value) -> torch.dtype:
    """The type of a value's numbers."""
    return value.samples[0].dtype
