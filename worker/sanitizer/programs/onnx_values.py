"""What the values of an ONNX graph are while it is built: samples for several batch sizes, and links to the file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, fx


@dataclass(frozen=True, slots=True)
class Value:
    """What an ONNX name stands for.

    Attributes:
        samples: One tensor per batch size followed: real where known, meta where the graph computes it.
        node: The node that computes it; None where it is known.
        weight: Name in the file where the value is a floating-point tensor of the file.
        transposed: Whether it is that tensor transposed.
    """

    samples: tuple[Tensor, ...]
    node: fx.Node | None = None
    weight: str | None = None
    transposed: bool = False

    @property
    def rank(self) -> int:
        """Number of dimensions, the same for every batch size."""
        return self.samples[0].dim()

    @property
    def is_known(self) -> bool:
        """Whether it is a number or tensor that depends on no image."""
        return self.node is None


@dataclass(frozen=True, slots=True)
class Extent:
    """A number that depends on the batch size: what it is for each one followed."""

    values: tuple[int, ...]


Dim = int | Extent
Layout = Literal["as in the file", "transposed", "flat"]
AS_IN_FILE: Layout = "as in the file"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a tensor of the network comes from: its name in the file, and how it is held."""

    name: str
    layout: Layout = AS_IN_FILE


def held(tensor: Tensor, layout: Layout) -> Tensor:
    """A tensor of the file as the network holds it."""
    if layout == "transposed":
        return tensor.t()
    return tensor.reshape(-1) if layout == "flat" else tensor


def values_in(args: Iterable[Any]) -> Iterable[Value]:
    """The values among an operator's arguments."""
    for arg in args:
        if isinstance(arg, Value):
            yield arg
        elif isinstance(arg, list | tuple):
            yield from values_in(arg)


def fill(arg: Any, index: int, *, meta: bool) -> Any:  # noqa: ANN401 - what an operator takes
    """An argument of an operator for one of the batch sizes followed."""
    if isinstance(arg, Value):
        sample = arg.samples[index]
        return sample.to("meta") if meta else sample
    if isinstance(arg, Extent):
        return arg.values[index]
    if isinstance(arg, list | tuple):
        return [fill(item, index, meta=meta) for item in arg]
    return arg
