"""Match the class names of a data set with those that the model was declared with."""

from __future__ import annotations

import torch
from torch import Tensor

from worker.sanitizer.refusals import LabelsOutOfRangeError, UnknownClassNamesError

MAX_NAMED = 5
MAX_CHARACTERS = 40


def are_numbers(names: tuple[str, ...]) -> bool:
    """Whether the names only repeat the labels: 0, 1, 2 and so on."""
    return names == tuple(str(label) for label in range(len(names)))


def to_model_order(labels_N: Tensor, names: tuple[str, ...], wanted: tuple[str, ...]) -> Tensor:
    """Return the labels in the model's class order, found by name; numbered classes are in it already.

    Args:
        labels_N: Labels in the data set's own order.
        names: Its class names in that order.
        wanted: The model's class names in the model's order.

    Raises:
        DatasetRefusedError: unknown_class_names, labels_out_of_range.
    """
    used = torch.unique(labels_N).tolist()
    if used and not 0 <= used[0] <= used[-1] < len(names):
        raise LabelsOutOfRangeError(
            f"labels are {used[0]} to {used[-1]}, and the data set names {len(names)} classes; correct the labels"
        )
    index = {name: label for label, name in enumerate(wanted)}
    unknown = [names[label] for label in used if names[label] not in index]
    if unknown and are_numbers(names):
        return labels_N
    if unknown:
        listed = ", ".join(repr(name[:MAX_CHARACTERS]) for name in unknown[:MAX_NAMED])
        example = ", ".join(repr(name[:MAX_CHARACTERS]) for name in wanted[:MAX_NAMED])
        raise UnknownClassNamesError(
            f"{len(unknown)} classes of the data set are not among architecture.class_names ({listed}); the model's "
            f"begin with {example}: use the same names, or name the classes 0 to C-1"
        )
    order_L = torch.tensor([index.get(name, -1) for name in names], dtype=torch.int64)
    return order_L[labels_N] if used else labels_N
