"""Compare a checkpoint with what an architecture expects."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from worker.sanitizer.checkpoint.reading import Checkpoint
from worker.sanitizer.refusals import ArchitectureMismatchError

MAX_NAMED = 5
_COUNTER = "num_batches_tracked"


def match(checkpoint: Checkpoint, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Require the keys, shapes and kinds of numbers (floating, integer, boolean) of `expected`.

    The counters `num_batches_tracked` may be missing: torch wrote none before 0.4.1, and in evaluation no result
    depends on them.

    Returns:
        The tensors to load with strict=True: the checkpoint's, and the counters that it lacks from `expected`.

    Raises:
        ArchitectureMismatchError: it names the first five differences and the counts of each sort.
    """
    found = checkpoint.tensors
    counters = [name for name in expected if name not in found and name.rpartition(".")[2] == _COUNTER]
    missing = [name for name in expected if name not in found and name not in counters]
    unexpected = [name for name in found if name not in expected]
    different = [
        f"{name} is {_describe(found[name])}, expected {_describe(tensor)}"
        for name, tensor in expected.items()
        if name in found and not _alike(found[name], tensor)
    ]
    if missing or unexpected or different:
        facts = (
            different + [f"{name} is missing" for name in missing] + [f"{name} is unexpected" for name in unexpected]
        )
        raise ArchitectureMismatchError(
            f"the checkpoint does not fit the architecture ({len(missing)} missing, {len(unexpected)} unexpected, "
            f"{len(different)} of another shape or kind): {'; '.join(fact[:200] for fact in facts[:MAX_NAMED])}. "
            "Check the architecture's name, num_classes, in_channels and options",
            num_missing=len(missing),
            num_unexpected=len(unexpected),
            num_different=len(different),
        )
    return {**found, **{name: expected[name] for name in counters}}


def _alike(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and _kind(found.dtype) == _kind(expected.dtype)


def _kind(dtype: torch.dtype) -> str:
    if dtype is torch.bool:
        return "boolean"
    if dtype.is_complex:
        return "complex"
    return "floating" if dtype.is_floating_point else "integer"


def _describe(tensor: Tensor) -> str:
    return f"{_kind(tensor.dtype)} {tuple(tensor.shape)}"
