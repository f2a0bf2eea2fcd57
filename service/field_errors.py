"""What is wrong with each field of a request, in the terms of JSON rather than those of Python and its types."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

MAX_ERRORS = 20
MAX_TEXT = 300

# What a field must be, where the value is of another type.
_MUST_BE = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dataclass_type": "a JSON object",
    "dict_type": "a JSON object",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "list_type": "a JSON list",
    "model_attributes_type": "a JSON object",
    "string_type": "text",
    "tuple_type": "a JSON list",
}
_MESSAGES = {
    "json_invalid": "the body is not valid JSON (the number is the position of the error)",
    "missing": "is required",
    "extra_forbidden": "there is no such field here; /docs lists those there are",
    "unexpected_keyword_argument": "there is no such field here; /docs lists those there are",
}
# The names that pydantic gives to the members of a union and puts between those of fields.
_SCALAR = re.compile(r"bool|int|float|str|(?:literal|list|tuple)\[.*\]", re.DOTALL)
_CLASS = re.compile(r"[A-Z]\w+")
# Which of several kinds of object is meant; the others' errors are then beside the point.
_KIND = "kind"

Error = Mapping[str, Any]


def explain(found: Sequence[Error]) -> list[dict[str, str]]:
    """One entry a field: `field`, `message` and pydantic's `type`.

    A value that fits no member of a union gives an error for each; they become one, or those of the member meant.
    The input itself is never echoed: it may be huge.
    """
    plain: list[dict[str, str]] = []
    unions: dict[tuple[Any, ...], dict[str, list[Error]]] = {}
    for error in found:
        at = _member(error)
        if at is None:
            plain.append(_entry(error["loc"], _message(error), error["type"]))
        else:
            loc = tuple(error["loc"])
            unions.setdefault(loc[:at], {}).setdefault(loc[at], []).append(error)
    for loc, members in unions.items():
        plain += _of_union(loc, members)
    return plain[:MAX_ERRORS]


def _of_union(loc: tuple[Any, ...], members: Mapping[str, list[Error]]) -> list[dict[str, str]]:
    meant = [errors for errors in members.values() if not any(_is_wrong_kind(error, loc) for error in errors)]
    if not meant:
        kinds = [error for errors in members.values() for error in errors if _is_wrong_kind(error, loc)]
        return [_entry((*loc, _KIND), _alternatives(kinds), "literal_error")]
    deep = [errors for errors in meant if any(len(error["loc"]) > len(loc) + 1 for error in errors)]
    is_object = any(_CLASS.fullmatch(name) for name in members)
    if is_object or deep or len(meant) == 1:
        chosen = min(meant if is_object else deep or meant, key=len)
        return [_entry((*loc, *error["loc"][len(loc) + 1 :]), _message(error), error["type"]) for error in chosen]
    errors = [error for member in meant for error in member]
    return [_entry(loc, _alternatives(errors), errors[0]["type"])]


def _member(error: Error) -> int | None:
    """Where in the error's location a member of a union stands, if one does; a key before it may only look so."""
    unknown_field = error["type"] in ("extra_forbidden", "unexpected_keyword_argument")
    names = error["loc"][:-1] if unknown_field else error["loc"]
    for index in range(len(names) - 1, 0, -1):
        name = names[index]
        if isinstance(name, str) and (_SCALAR.fullmatch(name) or _CLASS.fullmatch(name)):
            return index
    return None


def _is_wrong_kind(error: Error, loc: tuple[Any, ...]) -> bool:
    return error["type"] == "literal_error" and tuple(error["loc"][len(loc) + 1 :]) == (_KIND,)


def _alternatives(errors: Sequence[Error]) -> str:
    """What the field may be."""
    allowed = list(dict.fromkeys(_expected(error) or _message(error) for error in errors))
    return f"must be {', '.join(allowed[:-1])} or {allowed[-1]}" if len(allowed) > 1 else f"must be {allowed[0]}"


def _expected(error: Error) -> str | None:
    if error["type"] == "literal_error":
        return str(error["ctx"]["expected"])
    return _MUST_BE.get(error["type"])


def _message(error: Error) -> str:
    kind = error["type"]
    if kind in _MESSAGES:
        return _MESSAGES[kind]
    expected = _expected(error)
    # pydantic prefixes what a validator of ours said.
    return f"must be {expected}" if expected else str(error["msg"]).removeprefix("Value error, ")


def _entry(loc: Sequence[Any], message: str, kind: str) -> dict[str, str]:
    return {"field": ".".join(str(part) for part in loc)[:MAX_TEXT], "message": message[:MAX_TEXT], "type": str(kind)}
