"""Activations and layer norms that older opsets spell out, put back together into the operators that have their names.

Each is replaced by the operator that computes the same values; a spelling that is not known stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import fx
from torch._ops import OpOverload

from worker.sanitizer.programs.onnx_builder import aten

_TOLERANCE = 1e-4
_GATES: dict[object, OpOverload] = {
    aten.sigmoid.default: aten.silu.default,
    aten.hardsigmoid.default: aten.hardswish.default,
}
_PRODUCTS = (aten.mul.Tensor, aten.div.Tensor)


def fuse(graph: fx.Graph) -> None:
    """Replace the spellings that are known; what nothing reads any more is removed."""
    for node in list(graph.nodes):
        if node.op == "call_function" and node.users:
            replacement = _activation(graph, node) or _layer_norm(graph, node)
            if replacement is not None:
                node.replace_all_uses_with(replacement)
    graph.eliminate_dead_code()


def _activation(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    if node.target not in _PRODUCTS or any(user.target in _PRODUCTS and _scales(user) for user in node.users):
        return None
    factors = list(_factors(node))
    scale = math.prod(factor for factor in factors if not isinstance(factor, fx.Node))
    nodes = [factor for factor in factors if isinstance(factor, fx.Node)]
    if len(nodes) != 2:
        return None
    for value, gate in (nodes, nodes[::-1]):
        target, inner = _GATES.get(gate.target), gate.args[0] if gate.args else None
        if target is not None and inner is value and _is(scale, 1.0):
            return _call(graph, node, target, (value,))
        if _is(scale, 0.5) and _is_gelu_gate(gate, value):
            return _call(graph, node, aten.gelu.default, (value,))
        if _is(scale, 1 / 6) and _is_hard_gate(gate, value):
            return _call(graph, node, aten.hardswish.default, (value,))
    return None


def _scales(node: fx.Node) -> bool:
    """Whether a product is one with a number, so that it belongs to the same chain of factors."""
    return any(isinstance(argument, int | float) for argument in node.args)


def _factors(node: fx.Node) -> Iterator[fx.Node | float]:
    """What a chain of products, each read by the next alone, is a product of."""
    left, right = node.args[0], node.args[1]
    for position, argument in enumerate((left, right)):
        is_divisor = node.target is aten.div.Tensor and position == 1
        if isinstance(argument, int | float):
            yield 1 / argument if is_divisor and argument else float(argument)
        elif isinstance(argument, fx.Node):
            inner = argument.op == "call_function" and argument.target in _PRODUCTS and len(argument.users) == 1
            if inner and not is_divisor and (argument.target is aten.mul.Tensor or _scales(argument)):
                yield from _factors(argument)
            elif is_divisor:
                # A quotient of two computed values is no product; three factors match no pattern.
                yield from (argument, argument)
            else:
                yield argument


def _is_gelu_gate(gate: fx.Node, value: fx.Node) -> bool:
    """Whether this is 1 + erf(x / sqrt(2))."""
    inner = _plus(gate, 1.0)
    if inner is None or inner.target is not aten.erf.default:
        return False
    scaled = inner.args[0]
    if not isinstance(scaled, fx.Node) or scaled.target not in _PRODUCTS:
        return False
    source, number = scaled.args[0], scaled.args[1]
    if source is not value or not isinstance(number, int | float) or number == 0:
        return False
    return _is(number if scaled.target is aten.mul.Tensor else 1 / number, math.sqrt(0.5))


def _is_hard_gate(gate: fx.Node, value: fx.Node) -> bool:
    """Whether this is x + 3, held between 0 and 6."""
    if gate.target is not aten.hardtanh.default or gate.args[1:] != (0.0, 6.0) or not isinstance(gate.args[0], fx.Node):
        return False
    return _plus(gate.args[0], 3.0) is value


def _layer_norm(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """(x - mean) / sqrt(mean((x - mean)²) + eps) over the last axis, with its scale and shift where they follow."""
    if node.target is not aten.div.Tensor:
        return None
    centred, root = node.args[0], node.args[1]
    if not isinstance(centred, fx.Node) or not isinstance(root, fx.Node) or root.target is not aten.sqrt.default:
        return None
    value, total = _centred(centred), root.args[0]
    if value is None or not isinstance(total, fx.Node) or total.target is not aten.add.Tensor:
        return None
    variance, eps = total.args[0], total.args[1]
    if not isinstance(variance, fx.Node) or not isinstance(eps, float) or not _is_mean(variance):
        return None
    square = variance.args[0]
    assert isinstance(square, fx.Node)
    is_power = square.target is aten.pow.Tensor_Scalar and square.args[1] == 2
    is_product = square.target is aten.mul.Tensor and square.args[0] is square.args[1]
    base = square.args[0]
    if not (is_power or is_product) or not isinstance(base, fx.Node) or _centred(base) is not value:
        return None
    return _call(graph, node, aten.layer_norm.default, (value, [_width(value)], None, None, eps, False))


def with_scales(graph: fx.Graph) -> None:
    """Give each layer norm without them the scale and shift that follow it."""
    for node in list(graph.nodes):
        if node.target is not aten.layer_norm.default or node.args[2] is not None:
            continue
        scaled, scale = _followed(node, aten.mul.Tensor)
        if scaled is None:
            continue
        shifted, shift = _followed(scaled, aten.add.Tensor)
        end = scaled if shifted is None else shifted
        fused = _call(graph, end, aten.layer_norm.default, (*node.args[:2], scale, shift, *node.args[4:]))
        end.replace_all_uses_with(fused)
    graph.eliminate_dead_code()


def _followed(node: fx.Node, target: object) -> tuple[fx.Node | None, fx.Node | None]:
    """The only reader, if it combines the value with a stored vector of the norm's width, and that vector."""
    user = next(iter(node.users)) if len(node.users) == 1 else None
    if user is None or user.target is not target:
        return None, None
    others = [one for one in user.args if one is not node]
    stored = others[0] if len(others) == 1 else None
    if not isinstance(stored, fx.Node) or stored.op != "get_attr" or stored.meta["shape"] != (_width(node),):
        return None, None
    return user, stored


def _centred(node: fx.Node) -> fx.Node | None:
    """The value of which this is the difference to its mean over the last axis."""
    if node.target is not aten.sub.Tensor:
        return None
    value, mean = node.args[0], node.args[1]
    if not isinstance(value, fx.Node) or not isinstance(mean, fx.Node) or not _is_mean(mean):
        return None
    return value if mean.args[0] is value else None


def _is_mean(node: fx.Node) -> bool:
    if node.target is not aten.mean.dim or not isinstance(node.args[0], fx.Node):
        return False
    return node.args[1] == [len(node.args[0].meta["shape"]) - 1] and node.args[2] is True


def _width(node: fx.Node) -> int:
    return int(node.meta["shape"][-1])


def _plus(node: fx.Node, number: float) -> fx.Node | None:
    """The value to which this number is added."""
    if node.target is not aten.add.Tensor or node.args[1] != number or not isinstance(node.args[0], fx.Node):
        return None
    return node.args[0]


def _is(number: float, wanted: float) -> bool:
    return abs(number - wanted) < _TOLERANCE * wanted


def _call(graph: fx.Graph, before: fx.Node, target: object, arguments: tuple[object, ...]) -> fx.Node:
    with graph.inserting_before(before):
        node = graph.call_function(target, arguments)  # type: ignore[arg-type]
    node.meta.update(before.meta)  # It takes the place of a node of the same value.
    return node
