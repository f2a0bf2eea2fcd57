"""The JSON of a `.pt2` archive, as plain dictionaries, once nothing in it can mean more than data.

Format: torch/_export/serde/schema.py of torch 2.10 to 2.13 (schema version 8). What torch's own loader would evaluate,
import or call (guard code, symbolic expressions, tree specifications, foreign operators) is refused here or held to a
grammar of our own, so that the download, which carries the same JSON, is harmless to torch.export.load.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from worker.sanitizer.refusals import (
    CorruptProgramError,
    CustomObjectError,
    GuardCodeError,
    NewerExportError,
    ProgramTooLargeError,
    SymbolicExpressionError,
    TreeSpecError,
)

Document = dict[str, Any]

MAX_JSON_BYTES = 48 * 2**20
# Brackets and commas: each costs some 60 bytes of memory once it is a Python object.
MAX_JSON_MARKS = 6_000_000
# Of objects and arrays within one another; programs have some ten, and what walks them again must not run out of stack.
MAX_DEPTH = 60
MAX_EXPRESSION_CHARACTERS = 1000
MAX_TREE_CHARACTERS = 20_000
SCHEMA_MAJOR = 8
MAX_SCHEMA_MINOR = 20

_PROGRAM = frozenset(
    {
        *("graph_module", "opset_version", "range_constraints", "schema_version", "verifiers", "torch_version"),
        "guards_code",
    }
)
_GRAPH_MODULE = frozenset({"graph", "signature", "module_call_graph", "metadata", "treespec_namedtuple_fields"})
_GRAPH = frozenset(
    {
        *("inputs", "outputs", "nodes", "tensor_values", "sym_int_values", "sym_bool_values", "sym_float_values"),
        *("is_single_tensor_return", "custom_obj_values"),
    }
)
_NODE = frozenset({"target", "inputs", "outputs", "metadata", "is_hop_single_tensor_return", "name"})
_METADATA = frozenset({"stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "custom", "from_node"})
_CALL = frozenset({"fqn", "signature"})
_CALL_SIGNATURE = frozenset({"inputs", "outputs", "in_spec", "out_spec", "forward_arg_names"})

# sympy evaluates these strings as Python, so that they are held to sums, products, quotients and bounds of symbols.
# Atomic, so that no string costs more than one pass. No power and no shift: those make numbers of any length.
_EXPRESSION = re.compile(
    r"(?>(?:Symbol\('[a-z]{1,4}[0-9]{1,9}'|Integer|Add|Mul|Max|Min|FloorDiv|CleanDiv|IntTrueDiv|CeilDiv|Mod|PythonMod"
    r"|floor|Eq|Equality|Ne|Unequality|Gt|Ge|Lt|Le|StrictGreaterThan|GreaterThan|StrictLessThan|LessThan|And|Or|Not"
    r"|(?:positive|integer|nonnegative|evaluate)=(?:True|False)|[suz][0-9]{1,9}|[0-9]{1,18})(?![A-Za-z0-9_.'])"
    r"|//|==|!=|<=|>=|<(?!<)|>(?!>)|\*(?!\*)|[-+/%(),&|~ ])++"
)
_TREE_TYPES = frozenset({None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"})
_MODEL_OUTPUT = re.compile(r"transformers(\.[A-Za-z0-9_]{1,80}){1,8}")
_CONTEXT = re.compile(r"null|\[(\"[A-Za-z0-9_.]{0,80}\"(, )?)*\]")
_SYMBOL = re.compile(r"[a-z]{1,4}[0-9]{1,9}")


def parse(data: bytes, what: str) -> Document:
    """The JSON object in these bytes.

    Raises:
        CorruptProgramError: it is none, or names a key twice.
        ProgramTooLargeError: it is larger than any program's.
    """
    if len(data) > MAX_JSON_BYTES or sum(data.count(mark) for mark in (b"{", b"[", b",")) > MAX_JSON_MARKS:
        raise ProgramTooLargeError(f"{what} is larger than an image classifier's; export the classifier alone")
    try:
        parsed = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite
        )
    except (ValueError, RecursionError) as error:
        raise CorruptProgramError(f"{what} is not valid JSON; export the program again") from error
    if _is_deeper(parsed, MAX_DEPTH):
        raise CorruptProgramError(f"{what} nests deeper than torch.export writes it; export the program again")
    return fields(parsed, what)


def fields(value: object, what: str) -> Document:
    """The value, which must be a JSON object."""
    if not isinstance(value, dict):
        raise _malformed(what)
    return value


def items(value: object, what: str) -> list[Any]:
    """The value, which must be a JSON array."""
    if not isinstance(value, list):
        raise _malformed(what)
    return value


def text(value: object, what: str) -> str:
    """The value, which must be a string of a name's length."""
    if not isinstance(value, str) or len(value) > MAX_EXPRESSION_CHARACTERS:
        raise _malformed(what)
    return value


def variant(value: object, what: str) -> tuple[str, Any]:
    """Kind and content of a tagged union, which JSON writes as an object with one key."""
    union = fields(value, what)
    if len(union) != 1:
        raise _malformed(what)
    return next(iter(union.items()))


def whole(value: object, what: str) -> int:
    """An integer of 64 bits, written alone or as `{"as_int": number}`."""
    if isinstance(value, dict):
        kind, value = variant(value, what)
        if kind != "as_int":
            raise _malformed(what)
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise _malformed(what)
    return value


def check(program: Document) -> None:
    """Refuse whatever would be more than data to torch's loader.

    Raises:
        CheckpointRefusedError: guard code, custom objects, fields that this schema does not know, and strings beyond
            the grammars of sizes and of tree specifications.
    """
    _known(program, _PROGRAM, "the program")
    version = fields(program.get("schema_version"), "schema_version")
    major, minor = (whole(version.get(name), "schema_version") for name in ("major", "minor"))
    if major != SCHEMA_MAJOR or minor > MAX_SCHEMA_MINOR:
        raise NewerExportError(
            f"the program has schema version {major}.{minor}; versions {SCHEMA_MAJOR}.0 to "
            f"{SCHEMA_MAJOR}.{MAX_SCHEMA_MINOR} are read; export it with torch 2.10 to 2.13"
        )
    if program.get("guards_code"):
        raise GuardCodeError(
            "the program carries guard code, Python that its loader would run; export it without, as torch.export does "
            "by default"
        )
    if not all(_SYMBOL.fullmatch(name) for name in fields(program.get("range_constraints", {}), "range_constraints")):
        raise _expression("range_constraints")
    module = fields(program.get("graph_module"), "graph_module")
    _known(module, _GRAPH_MODULE, "the graph module")
    if module.get("treespec_namedtuple_fields"):
        raise TreeSpecError("the program takes or returns named tuples; let it take one tensor and return the logits")
    graph = fields(module.get("graph"), "graph")
    _known(graph, _GRAPH, "the graph")
    if graph.get("custom_obj_values"):
        raise CustomObjectError("the program holds custom objects; export a model of tensors alone")
    for node in items(graph.get("nodes"), "nodes"):
        _known(fields(node, "a node"), _NODE, "a node")
        _known(fields(node.get("metadata", {}), "metadata"), _METADATA, "a node's metadata")
    for call in items(module.get("module_call_graph", []), "module_call_graph"):
        _check_call(fields(call, "module_call_graph"))
    for expression in _expressions(program):
        if len(expression) > MAX_EXPRESSION_CHARACTERS or not _EXPRESSION.fullmatch(expression):
            raise _expression(expression)


def tree(specification: object) -> Document:
    """A pytree specification: tuples, lists, dictionaries and transformers' outputs of leaves.

    Raises:
        TreeSpecError: it names another type, which a loader would look up or import.
    """
    if not isinstance(specification, str) or len(specification) > MAX_TREE_CHARACTERS:
        raise _tree_refusal("a specification that is too long")
    try:
        version, root = json.loads(specification)
    except (ValueError, TypeError, RecursionError) as error:
        raise _tree_refusal("a malformed specification") from error
    if version != 1:
        raise _tree_refusal("a specification of another version")
    pending = [root]
    while pending:
        node = fields(pending.pop(), "a tree specification")
        if set(node) != {"type", "context", "children_spec"}:
            raise _tree_refusal("unknown fields")
        kind, context = node["type"], node["context"]
        if not (kind is None or isinstance(kind, str)) or not (
            kind in _TREE_TYPES or _MODEL_OUTPUT.fullmatch(kind or "")
        ):
            raise _tree_refusal(f"the type {str(kind)[:80]!r}")
        if context is not None and not (isinstance(context, str) and _CONTEXT.fullmatch(context)):
            raise _tree_refusal("an unusual context")
        pending += items(node["children_spec"], "a tree specification")
    return fields(root, "a tree specification")


def _check_call(call: Document) -> None:
    _known(call, _CALL, "module_call_graph")
    signature = call.get("signature")
    if signature is None:
        return
    _known(fields(signature, "a call's signature"), _CALL_SIGNATURE, "a call's signature")
    if items(signature.get("inputs", []), "inputs") or items(signature.get("outputs", []), "outputs"):
        raise TreeSpecError("the program keeps the signatures of its submodules; export it without them")
    tree(signature.get("in_spec"))
    tree(signature.get("out_spec"))


def _expressions(value: object) -> Iterator[str]:
    """Every symbolic expression, wherever it stands."""
    pending = [value]
    while pending:
        current = pending.pop()
        if isinstance(current, dict):
            if "expr_str" in current:
                expression = current["expr_str"]
                if not isinstance(expression, str):
                    raise _malformed("a symbolic size")
                yield expression
            pending += current.values()
        elif isinstance(current, list):
            pending += current


def _known(value: Document, names: frozenset[str], what: str) -> None:
    """Refuse fields that a newer torch may give a meaning that we cannot judge; empty ones have none."""
    unknown = [name for name, content in value.items() if name not in names and content not in (None, [], {}, False)]
    if unknown:
        raise NewerExportError(
            f"{what} has the unknown field {unknown[0][:60]!r}; export it with torch 2.10 to 2.13 and no extra data"
        )


def _unique(pairs: list[tuple[str, object]]) -> Document:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("one key twice")
    return result


def _is_deeper(value: Any, most: int) -> bool:  # noqa: ANN401 - JSON
    """Whether more than so many objects and arrays lie within one another."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(most):
        inner = (one for outer in level for one in (outer.values() if isinstance(outer, dict) else outer))
        level = [one for one in inner if isinstance(one, (dict, list))]
    return bool(level)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _no_constant(name: str) -> object:
    # torch writes infinities as strings, because JSON has none.
    raise ValueError(name)


def _malformed(what: str) -> CorruptProgramError:
    return CorruptProgramError(f"{what} is not what torch.export writes; export the program again")


def _expression(expression: str) -> SymbolicExpressionError:
    return SymbolicExpressionError(
        f"the program holds the symbolic size {expression[:80]!r}; only sums, products, quotients and bounds of whole "
        "sizes are read; export it with a dynamic batch alone, or with fixed sizes"
    )


def _tree_refusal(what: str) -> TreeSpecError:
    return TreeSpecError(
        f"the program's inputs or outputs are described by {what}; let it take one tensor and return the logits"
    )
