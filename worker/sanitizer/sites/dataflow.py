"""Follow a layer's channels through views, transposes and elementwise functions, without computing the network.

Rearrangements are followed by running them on the channels' numbers, so that any way of cutting heads is understood.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from worker.sanitizer.sites import operators
from worker.sanitizer.sites.operators import Layer

FOLLOWED = operators.ACTIVATIONS | operators.IDENTITIES | operators.ELEMENTWISE
# A value of more elements is not followed: the channels' numbers take four bytes each.
MAX_ELEMENTS = 2**26


@dataclass(frozen=True, slots=True)
class Settled:
    """Where the elementwise functions behind a node end.

    Attributes:
        node: The last node that all of them go through and that is behind an activation, else the node itself.
        is_activated: Whether a function that is not linear lies before it.
        at_zero: What those functions make of zero.
    """

    node: fx.Node
    is_activated: bool
    at_zero: float


def settle(start: fx.Node) -> Settled:
    """Follow elementwise functions of the node alone, by name or spelt out, to where they meet.

    x · sigmoid(x) meets in the product and maps zero to zero; a gate, sigmoid(x) alone, maps it to a half.
    """
    at_zero = {start: torch.zeros(())}
    pending = dict.fromkeys(operators.readers(start))
    found, is_activated, is_bent = Settled(start, False, 0.0), False, False
    while (node := _next(pending, at_zero)) is not None:
        del pending[node]
        at_zero[node] = _evaluate(node, at_zero)
        is_activated |= node.target not in operators.IDENTITIES | operators.LINEAR_ELEMENTWISE
        is_bent |= node.target not in operators.LINEAR_ELEMENTWISE
        # What several branches share, or joins them, is bent where one of them was.
        if not pending and is_bent:
            found, is_bent = Settled(node, is_activated, float(at_zero[node])), False
        pending.update(dict.fromkeys(operators.readers(node)))
    return found


def ahead(node: fx.Node, axis: int) -> Iterator[tuple[fx.Node, int]]:
    """The node and, one after another, the rearrangements that alone read it, each with the channels' axis in it."""
    yield node, axis
    numbers = numbered(node, axis)
    while numbers is not None:
        user = operators.only_reader(node)
        if user is None or user.target not in operators.REARRANGEMENTS:
            return
        moved = _moved(user, node, numbers)
        found = _axis(moved) if isinstance(moved, Tensor) else None
        if found is None:
            return
        assert isinstance(moved, Tensor)
        node, numbers = user, moved
        yield node, found


def origin(node: fx.Node) -> tuple[Layer, Tensor] | None:
    """The layer whose channels the node's value is made of, and at each element the channel's number; else None."""
    steps = []
    while (found := _layer_ending_at(node)) is None:
        steps.append(node)
        source = node.args[0] if node.args else None
        is_known = node.target in operators.REARRANGEMENTS or node.target is operator.getitem
        if not is_known or not isinstance(source, fx.Node):
            return None
        node = source
    numbers: Any = numbered(node, found.axis)
    for step in reversed(steps):
        if numbers is None:
            return None
        numbers = _moved(step, node, numbers)
        node = step
    return (found, numbers) if isinstance(numbers, Tensor) else None


def numbered(node: fx.Node, axis: int) -> Tensor | None:
    """At each element of the node's value the number of its channel; None where that is too much."""
    shape = operators.shape(node)
    if shape is None or torch.Size(shape).numel() > MAX_ELEMENTS:
        return None
    numbers = torch.arange(shape[axis], dtype=torch.int32)
    return numbers.view(-1, *[1] * (len(shape) - 1 - axis)).expand(shape)


def runs(numbers: Tensor, axis: int) -> tuple[int, int, int] | None:
    """(start, block, stride) of the channels along an axis: `block` consecutive numbers each, or None."""
    flat = numbers.movedim(axis, 0).reshape(numbers.shape[axis], -1)
    if bool((flat == flat[:, :1]).all()):  # Channels of one slice, of which there may be thousands.
        flat = flat[:, :1]
    sets = [torch.unique(one) for one in flat]
    blocks = {len(one) for one in sets}
    if len(blocks) != 1:
        return None
    (block,) = blocks
    starts = [int(one[0]) for one in sets]
    stride = starts[1] - starts[0] if len(starts) > 1 else block
    is_regular = starts == [starts[0] + stride * position for position in range(len(starts))] and stride >= block
    is_consecutive = all(int(one[-1]) == int(one[0]) + block - 1 for one in sets)
    return (starts[0], block, stride) if is_regular and is_consecutive else None


def _axis(numbers: Tensor) -> int | None:
    """The axis along which the channels lie in order; None where there is no such axis."""
    for axis, length in enumerate(numbers.shape):
        along = numbers.movedim(axis, 0).reshape(length, -1)
        expected = torch.arange(length, dtype=numbers.dtype).unsqueeze(1)
        if length == int(numbers.max()) + 1 and bool((along == expected).all()):
            return axis
    return None


def _moved(node: fx.Node, source: fx.Node, numbers: Any) -> Any:  # noqa: ANN401 - a tensor or a tuple of them
    """The rearrangement `node` of `source`'s channel numbers; None where it cannot be run on the example's sizes."""
    if node.target is operator.getitem:
        position = node.args[1]
        return numbers[position] if isinstance(numbers, (tuple, list)) and isinstance(position, int) else None
    shape = operators.shape(node)
    if not isinstance(numbers, Tensor) or (shape is not None and torch.Size(shape).numel() > MAX_ELEMENTS):
        return None

    def concrete(one: fx.Node) -> Any:  # noqa: ANN401 - an argument
        if one is source:
            return numbers
        value = one.meta.get("val")
        if isinstance(value, Tensor):
            return torch.empty((), dtype=torch.int32).expand(operators.sizes(value) or ())
        return operators.size(value)

    arguments = fx.node.map_arg(node.args, concrete)
    keywords = fx.node.map_arg(node.kwargs, concrete)
    try:
        assert callable(node.target)
        return node.target(*arguments, **keywords)
    except (RuntimeError, TypeError, ValueError, IndexError):
        # A size that only a run would tell; the layer is then skipped by name.
        return None


def _layer_ending_at(node: fx.Node) -> Layer | None:
    found = operators.layer(node) if node.op == "call_function" else None
    if found is None and node.target is operators.aten.add.Tensor:  # A product whose bias is added apart.
        products = [operators.layer(one) for one in node.all_input_nodes]
        found = next((one for one in products if one is not None and one.end is node), None)
    return found if found is not None and found.end is node else None


def _next(pending: dict[fx.Node, None], at_zero: dict[fx.Node, Tensor]) -> fx.Node | None:
    """A pending elementwise function of what is known alone."""
    for node in pending:
        if node.op != "call_function" or node.target not in FOLLOWED:
            continue
        is_parametric = node.target in operators.PARAMETRIC
        if all(one in at_zero or is_parametric or _is_constant(one) for one in node.all_input_nodes):
            return node
    return None


def _is_constant(node: fx.Node) -> bool:
    return node.op == "get_attr" and torch.Size(operators.shape(node) or (2,)).numel() == 1


def _evaluate(node: fx.Node, at_zero: dict[fx.Node, Tensor]) -> Tensor:
    if node.target in operators.PARAMETRIC | operators.IDENTITIES:
        return next(at_zero[one] for one in node.all_input_nodes if one in at_zero).clone()
    module = node.graph.owning_module
    assert module is not None

    def value(one: fx.Node) -> Tensor:
        if one in at_zero:
            return at_zero[one].clone()
        constant = operator.attrgetter(str(one.target))(module)
        return torch.as_tensor(constant).detach().reshape(()).float()

    assert callable(node.target)
    with torch.no_grad():
        result = node.target(*fx.node.map_arg(node.args, value), **fx.node.map_arg(node.kwargs, value))
    assert isinstance(result, Tensor)
    return result
