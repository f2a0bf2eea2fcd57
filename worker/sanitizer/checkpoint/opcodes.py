"""What a checkpoint's pickle would do, worked out instruction by instruction without doing any of it.

torch's restricted loader decides which functions may run; this pass decides, before that, whether their arguments make
sense: it follows the stack with inert stand-ins, knows each tensor's storage, offset, sizes and strides, and refuses
everything that a state dict does not need. The loader is still the gate for code; this is the gate for sizes.
"""

from __future__ import annotations

import math
import pickletools
import warnings
from dataclasses import dataclass, field
from typing import TypeGuard

from worker.sanitizer.checkpoint.pickle_names import (
    CALLABLE,
    ENCODE,
    FILLABLE,
    REBUILD_PARAMETER,
    REBUILD_TENSOR,
    STORAGE_ITEM_BYTES,
    Global,
    allowed,
)
from worker.sanitizer.refusals import (
    CheckpointTooComplexError,
    CorruptCheckpointError,
    TensorExceedsStorageError,
    UnsupportedPickleError,
    UnsupportedTensorError,
)
from worker.sanitizer.safetensors_file import refuse_absurd

MAX_PICKLE_BYTES = 32 * 2**20
MAX_INSTRUCTIONS = 2_000_000
# Views of shared storages may add up to this many times the bytes that are there: a real file reaches 2 or 3.
MAX_VIEW_RATIO = 4


@dataclass(frozen=True, slots=True)
class Summary:
    """The storages that a pickle refers to: key -> declared bytes."""

    storage_bytes: dict[str, int]


class _Inert:
    """A value whose content does not matter here (a container, or what a harmless call returns)."""

    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = kind


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    num_items: int
    item_bytes: int


class _TensorValue:
    __slots__ = ()


_MARK = object()
_LITERALS = ("BINUNICODE", "BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1", "SHORT_BINSTRING")
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


@dataclass(slots=True)
class _Machine:
    stack: list[object] = field(default_factory=list)
    memo: dict[int, object] = field(default_factory=dict)
    storage_types: dict[str, tuple[int, int]] = field(default_factory=dict)
    views: dict[tuple[str, int, tuple[int, ...], tuple[int, ...]], int] = field(default_factory=dict)

    def run(self, pickle: bytes) -> None:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(pickle)):
            if count > MAX_INSTRUCTIONS:
                raise CheckpointTooComplexError(
                    f"the checkpoint's pickle has more than {MAX_INSTRUCTIONS} instructions; save the state dict alone"
                )
            self.step(opcode.name, argument)

    def step(self, name: str, argument: object) -> None:  # noqa: C901, PLR0912 - one branch per instruction
        stack = self.stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[_integer(argument)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[_integer(argument)])
        elif name == "GLOBAL":
            stack.append(allowed(str(argument)))
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "TUPLE":
            stack.append(tuple(self.pop_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(name[-1])
            items = tuple(stack[-size:])
            del stack[-size:]
            stack.append(items)
        elif name == "EMPTY_DICT":
            stack.append(_Inert("dict"))
        elif name == "EMPTY_LIST":
            stack.append(_Inert("list"))
        elif name in ("SETITEMS", "APPENDS"):
            self.pop_mark()
            self.require(stack[-1], ("list",) if name == "APPENDS" else ("dict", "ordered", "counter"))
        elif name == "SETITEM":
            del stack[-2:]
            self.require(stack[-1], ("dict", "ordered", "counter"))
        elif name == "APPEND":
            stack.pop()
            self.require(stack[-1], ("list",))
        elif name == "BINPERSID":
            stack.append(self.storage(stack.pop()))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(self.call(stack.pop(), arguments))
        elif name == "BUILD":
            stack.pop()
            self.require(stack[-1], ("ordered", "dtype", "array"))
        elif name == "PROTO":
            if argument != 2:
                raise UnsupportedPickleError(
                    f"the checkpoint uses pickle protocol {argument}; save it with torch.save and its default protocol"
                )
        elif name != "STOP":
            raise UnsupportedPickleError(
                f"the checkpoint's pickle uses the instruction {name}, which torch.save does not write for a state "
                "dict; save torch.save(model.state_dict(), path)"
            )

    def pop_mark(self) -> list[object]:
        for position in range(len(self.stack) - 1, -1, -1):
            if self.stack[position] is _MARK:
                items = self.stack[position + 1 :]
                del self.stack[position:]
                return items
        raise CorruptCheckpointError("the checkpoint's pickle is damaged; upload the whole file again")

    def require(self, value: object, kinds: tuple[str, ...]) -> None:
        if not isinstance(value, _Inert) or value.kind not in kinds:
            raise UnsupportedPickleError(
                "the checkpoint's pickle fills an object other than a plain container; "
                "save torch.save(model.state_dict(), path)"
            )

    def storage(self, saved_id: object) -> _Storage:
        if not isinstance(saved_id, tuple) or len(saved_id) != 5:
            raise CorruptCheckpointError("a storage of the checkpoint is malformed; save it again with torch.save")
        tag, kind, key, location, num_items = saved_id
        if (
            tag != "storage"
            or not isinstance(kind, Global)
            or not isinstance(key, str)
            or not isinstance(location, str)
            or not _is_count(num_items)
        ):
            raise CorruptCheckpointError("a storage of the checkpoint is malformed; save it again with torch.save")
        item_bytes = STORAGE_ITEM_BYTES.get(kind.name.removeprefix("torch "))
        if item_bytes is None:
            raise CorruptCheckpointError("a storage of the checkpoint is malformed; save it again with torch.save")
        known = self.storage_types.setdefault(kind.name + " " + key, (num_items, item_bytes))
        if known != (num_items, item_bytes):
            raise CorruptCheckpointError(f"storage {key[:20]!r} is declared with two sizes; save the checkpoint again")
        return _Storage(key=key, num_items=num_items, item_bytes=item_bytes)

    def call(self, function: object, arguments: object) -> object:
        if not isinstance(function, Global) or function.name not in CALLABLE or not isinstance(arguments, tuple):
            raise UnsupportedPickleError(
                "the checkpoint's pickle calls an unusual function; save torch.save(model.state_dict(), path)"
            )
        if function.name == REBUILD_TENSOR:
            self.tensor(arguments)
            return _TensorValue()
        if function.name == REBUILD_PARAMETER:
            if len(arguments) != 3 or not isinstance(arguments[0], _TensorValue) or type(arguments[1]) is not bool:
                raise CorruptCheckpointError("a parameter of the checkpoint is malformed; save it again")
            return _TensorValue()
        if function.name == ENCODE:
            # Any other codec could expand its input.
            if len(arguments) != 2 or not isinstance(arguments[0], str) or arguments[1] != "latin1":
                raise UnsupportedPickleError("a byte string of the checkpoint has an unusual codec; save it again")
            return _Inert("bytes")
        return _Inert(FILLABLE.get(function.name, "value"))

    def tensor(self, arguments: tuple[object, ...]) -> None:
        if len(arguments) not in (6, 7):
            raise CorruptCheckpointError("a tensor of the checkpoint is malformed; save it again with torch.save")
        storage, offset, size, stride = arguments[:4]
        if (
            not isinstance(storage, _Storage)
            or not _is_count(offset)
            or not _are_counts(size)
            or not _are_counts(stride)
            or len(size) != len(stride)
        ):
            raise CorruptCheckpointError("a tensor of the checkpoint is malformed; save it again with torch.save")
        refuse_absurd(f"a tensor of shape {size[:8]}", size)
        num_items = math.prod(size)
        reach = offset + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True)) + 1
        if num_items and (num_items > storage.num_items or reach > storage.num_items):
            raise TensorExceedsStorageError(
                f"a tensor of shape {size} declares more than the {storage.num_items} elements that its storage "
                "holds (an expanded tensor?); call .contiguous() on it before saving"
            )
        self.views[storage.key, offset, size, stride] = num_items * storage.item_bytes


def summarize(pickle: bytes) -> Summary:
    """Follow the pickle of a torch zip and return the storages it refers to.

    Raises:
        CheckpointRefusedError: pickled_module, unsupported_tensor, tensor_exceeds_storage, unsupported_pickle,
            checkpoint_too_complex, corrupt_checkpoint.
    """
    machine = _Machine()
    try:
        with warnings.catch_warnings():
            # pickletools decodes an escaped string, with a warning on odd escapes, before we can refuse it.
            warnings.simplefilter("ignore", DeprecationWarning)
            machine.run(pickle)
    except (ValueError, IndexError, KeyError, OverflowError, RecursionError) as error:
        # genops raises ValueError for all that is malformed; the rest comes from an empty stack or memo.
        raise CorruptCheckpointError("the checkpoint's pickle is damaged; upload the whole file again") from error
    storage_bytes: dict[str, int] = {}
    for name, (num_items, item_bytes) in machine.storage_types.items():
        key = name.split(" ", 2)[2]
        if key in storage_bytes:
            raise UnsupportedTensorError(
                "two tensors read one storage as different dtypes; clone them before saving the state dict"
            )
        storage_bytes[key] = num_items * item_bytes
    if sum(machine.views.values()) > MAX_VIEW_RATIO * sum(storage_bytes.values()):
        raise TensorExceedsStorageError(
            "overlapping tensors declare far more data than the file holds; clone them before saving the state dict"
        )
    return Summary(storage_bytes=storage_bytes)


def _integer(value: object) -> int:
    assert isinstance(value, int)  # genops types these arguments
    return value


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 2**62


def _are_counts(value: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(value, tuple) and all(_is_count(item) for item in value)
