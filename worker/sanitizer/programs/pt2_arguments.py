"""The arguments of one operator: tagged unions of JSON, put in the order of the operator's own schema."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from worker.sanitizer.programs import pt2_document as documents
from worker.sanitizer.programs.operators import schema_of
from worker.sanitizer.programs.pt2_tensors import DTYPES
from worker.sanitizer.refusals import CustomObjectError, ProgramArgumentError

Values = Callable[[object], fx.Node]

MAX_ITEMS = 10_000
MAX_STRING_CHARACTERS = 200
# The graph computes in float32, whatever it was exported in, as the network of a state dict does.
_DTYPES = {number: torch.float32 if dtype.is_floating_point else dtype for number, dtype in DTYPES.items()}
_MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
_INFINITIES = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def by_schema(overload: OpOverload, inputs: list[Any], values: Values) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments; what the file left out before a later one takes the schema's default.

    Raises:
        ProgramArgumentError: a name that the schema lacks, or one that it needs is missing.
        CheckpointRefusedError: what `read` raises.
    """
    given: dict[str, Any] = {}
    for value in inputs:
        stated = documents.fields(value, "an argument")
        name = documents.text(stated.get("name"), "an argument's name")
        if name in given:
            raise _unfit(overload, f"has {name[:40]!r} twice")
        given[name] = read(stated.get("arg"), values)
    schema = schema_of(overload).arguments
    unknown = given.keys() - {argument.name for argument in schema}
    if unknown:
        raise _unfit(overload, f"has no argument {min(unknown)[:40]!r}")
    positional = [argument for argument in schema if not argument.kwarg_only]
    last = max((index for index, argument in enumerate(positional) if argument.name in given), default=-1)
    args = []
    for argument in positional[: last + 1]:
        if argument.name not in given and not argument.has_default_value():
            raise _unfit(overload, f"needs {argument.name!r}")
        args.append(given.get(argument.name, argument.default_value))
    if any(not argument.has_default_value() for argument in positional[last + 1 :]):
        raise _unfit(overload, "has too few arguments")
    kwargs = {
        argument.name: given[argument.name]
        for argument in schema
        # Memory layouts are strided or refused; the device is that of the network.
        if argument.kwarg_only and argument.name in given and argument.name not in ("layout", "pin_memory")
    }
    return tuple(args), kwargs


def read(argument: object, values: Values) -> Any:  # noqa: ANN401, C901, PLR0911, PLR0912 - one branch per kind
    """One argument as Python and torch have it.

    Raises:
        CustomObjectError: an object that is no tensor and no number.
        CorruptProgramError, ProgramArgumentError: it is malformed.
    """
    kind, content = documents.variant(argument, "an argument")
    if kind == "as_none":
        return None
    if kind == "as_tensor":
        return values(documents.fields(content, "an argument").get("name"))
    if kind in ("as_tensors", "as_ints", "as_floats", "as_bools", "as_sym_ints", "as_sym_floats", "as_sym_bools",
                "as_optional_tensors"):  # fmt: skip
        single = kind[:-1]
        return [read({single: item}, values) for item in _short(content)]
    if kind in ("as_sym_int", "as_sym_float", "as_sym_bool", "as_optional_tensor"):
        inner, name = documents.variant(content, "an argument")
        return values(name) if inner == "as_name" else read(content, values)
    if kind == "as_int":
        return documents.whole(content, "an argument")
    if kind == "as_float":
        return _float(content)
    if kind == "as_bool":
        if not isinstance(content, bool):
            raise _malformed("a truth value")
        return content
    if kind == "as_string":
        if not isinstance(content, str) or len(content) > MAX_STRING_CHARACTERS or not content.isascii():
            raise _malformed("a string")
        return content
    if kind == "as_scalar_type":
        return _listed(_DTYPES, content, "a dtype")
    if kind == "as_memory_format":
        return _listed(_MEMORY_FORMATS, content, "a memory format")
    if kind == "as_layout":
        return _listed({7: torch.strided}, content, "a layout")
    if kind == "as_device":
        return torch.device("cpu")
    raise CustomObjectError(
        f"the program has an argument of the kind {kind[:40]!r}, which is no tensor and no number; "
        "export a model of tensors alone"
    )


def _float(content: object) -> float:
    if isinstance(content, str) and content in _INFINITIES:
        return _INFINITIES[content]
    if isinstance(content, bool) or not isinstance(content, (int, float)):
        raise _malformed("a number")
    try:
        return float(content)
    except OverflowError as error:
        raise _malformed("a number") from error


def _short(content: object) -> list[Any]:
    found = documents.items(content, "an argument")
    if len(found) > MAX_ITEMS:
        raise _malformed("a list")
    return found


def _listed(known: dict[int, Any], content: object, what: str) -> Any:  # noqa: ANN401 - the values of the tables above
    number = documents.whole(content, what)
    if number not in known:
        raise _malformed(what)
    return known[number]


def _malformed(what: str) -> ProgramArgumentError:
    return ProgramArgumentError(f"an argument of the program is {what} that no classifier needs; export it again")


def _unfit(overload: OpOverload, what: str) -> ProgramArgumentError:
    return ProgramArgumentError(
        f"the program does not fit torch {torch.__version__}: {schema_of(overload).name} {what}; export it with it"
    )
