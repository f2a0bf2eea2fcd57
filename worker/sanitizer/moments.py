"""Mean and variance of each channel, summed up batch by batch.

Shapes: C channels, M values of each.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums over images and positions.

    Attributes:
        num_values: Of each channel.
        total_C: Sum, float64.
        squares_C: Sum of squares, float64.
    """

    num_values: int
    total_C: Tensor
    squares_C: Tensor

    def mean(self) -> Tensor:
        """(C,) float64."""
        return self.total_C / self.num_values

    def variance(self) -> Tensor:
        """The biased variance, which a batch norm divides by: (C,) float64."""
        return (self.squares_C / self.num_values - self.mean().square()).clamp_min(0.0)


def update(state: Moments | None, maps_NC: Tensor) -> Moments:
    """The moments after one more batch of maps (N, C, ...)."""
    values_CM = maps_NC.detach().double().transpose(0, 1).flatten(1)
    seen = Moments(values_CM.shape[1], values_CM.sum(dim=1), values_CM.square().sum(dim=1))
    if state is None:
        return seen
    return Moments(
        state.num_values + seen.num_values, state.total_C + seen.total_C, state.squares_C + seen.squares_C
    )  # fmt: skip
