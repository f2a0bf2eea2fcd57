"""The object tree of a torch checkpoint: walk it within bounds, and build it again around replaced tensors."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from worker.sanitizer.checkpoint.numpy_values import NUMBERS, ArrayRecord
from worker.sanitizer.refusals import CheckpointTooComplexError, UnsupportedPickleError, UnsupportedTensorError

MAX_DEPTH = 32
MAX_ENTRIES = 1_000_000

_LEAVES = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, ArrayRecord)
_KEYS = (type(None), bool, int, float, str, bytes)


def check(root: object) -> None:
    """Refuse what is not a bounded tree (shared branches allowed) of plain containers and dense tensors.

    Raises:
        CheckpointRefusedError: checkpoint_too_complex, unsupported_pickle, unsupported_tensor.
    """
    _Check().height(root, depth=0)


def rebuild(root: object, replace: Callable[[Tensor], Tensor]) -> object:
    """Return a copy of a checked tree with each tensor replaced; what was one object stays one object."""
    memo: dict[int, object] = {}

    def visit(node: object) -> object:
        if id(node) not in memo:
            memo[id(node)] = build(node)
        return memo[id(node)]

    def build(node: object) -> object:
        copy = node
        if isinstance(node, Tensor):
            copy = replace(node)
        elif isinstance(node, OrderedDict):
            copy = OrderedDict((key, visit(value)) for key, value in OrderedDict.items(node))
            copy.__dict__.update({name: visit(value) for name, value in node.__dict__.items()})
        elif type(node) is dict:
            copy = {key: visit(value) for key, value in node.items()}
        elif type(node) is list:
            copy = [visit(value) for value in node]
        elif type(node) is tuple:
            copy = tuple(visit(value) for value in node)
        return copy

    return visit(root)


class _Check:
    def __init__(self) -> None:
        self.heights: dict[int, int] = {}
        self.open: set[int] = set()
        self.num_entries = 0

    def height(self, node: object, depth: int) -> int:
        """Return how many levels are below a node; a node is entered once, however often it is referred to."""
        if depth > MAX_DEPTH or id(node) in self.open:
            raise _too_deep()
        if id(node) in self.heights:
            if depth + self.heights[id(node)] > MAX_DEPTH:
                raise _too_deep()
            return self.heights[id(node)]
        if isinstance(node, Tensor):
            _check_tensor(node)
            return 0
        if type(node) in _LEAVES or isinstance(node, NUMBERS):
            return 0
        self.open.add(id(node))
        result = 1 + max((self.height(child, depth + 1) for child in self.children(node)), default=0)
        self.open.discard(id(node))
        self.heights[id(node)] = result
        return result

    def children(self, node: object) -> Iterator[object]:
        if type(node) in (dict, OrderedDict, Counter):
            assert isinstance(node, dict)
            # An instance attribute could hide a method, so only the one that torch sets is let through.
            if type(node) is not dict and set(node.__dict__) - {"_metadata"}:
                raise _foreign(f"an {type(node).__name__} with attributes")
            self.count(len(node))
            for key in dict.keys(node):
                if type(key) not in _KEYS and not isinstance(key, NUMBERS):
                    raise _foreign(f"a dictionary key of type {type(key).__name__}")
            yield from dict.values(node)
            if type(node) is not dict:
                yield from node.__dict__.values()
        elif type(node) in (list, tuple):
            assert isinstance(node, list | tuple)
            self.count(len(node))
            yield from node
        else:
            raise _foreign(f"an object of type {type(node).__name__}")

    def count(self, more: int) -> None:
        self.num_entries += more
        if self.num_entries > MAX_ENTRIES:
            raise CheckpointTooComplexError(
                f"the checkpoint has more than {MAX_ENTRIES} entries; save the state dict alone"
            )


def _too_deep() -> CheckpointTooComplexError:
    return CheckpointTooComplexError(
        f"the checkpoint nests more than {MAX_DEPTH} levels deep or refers to itself; save the state dict alone"
    )


def _foreign(what: str) -> UnsupportedPickleError:
    return UnsupportedPickleError(f"the checkpoint holds {what}; save torch.save(model.state_dict(), path)")


def _check_tensor(tensor: Tensor) -> None:
    plain = (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        and not tensor.is_nested
    )
    if not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise UnsupportedTensorError(
            "the checkpoint holds a tensor that is not dense, strided and on the CPU; "
            "convert it with .to_dense().cpu().contiguous() before saving the state dict"
        )
