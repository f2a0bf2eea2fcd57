"""Decomposed operators written again as the layers that they came from, so that channels are found in either form.

`ExportedProgram.run_decompositions()` breaks layers into core operators; the arithmetic is the same.
"""

from __future__ import annotations

import torch
from torch import fx

from worker.sanitizer.programs.operators import get_item

aten = torch.ops.aten


def rewrite(graph: fx.Graph) -> None:
    """Replace, in place, what has an equal among the layers."""
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _FIRST_RESULTS and all(_is_first(user) for user in node.users):
            with graph.inserting_before(node):
                made = _first_result(graph, node)
            if made is not None:
                for user in list(node.users):
                    made.meta.update(user.meta)
                    user.replace_all_uses_with(made)
                    graph.erase_node(user)
                graph.erase_node(node)
        elif node.target in (aten.detach.default, aten.detach_.default):
            # The same value, behind which no search for a trigger could look.
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target in (aten.addmm.default, aten.mm.default):
            _rewrite_product(graph, node)
        elif node.target is aten._softmax.default and node.args[2] is False:  # noqa: SLF001 - an operator's name
            node.target, node.args = aten.softmax.int, node.args[:2]


# Operators whose first result is the layer's value; the others serve its gradient.
_FIRST_RESULTS = (
    aten._native_batch_norm_legit_no_training.default,  # noqa: SLF001 - an operator's name
    aten.native_layer_norm.default,
    aten.native_group_norm.default,
    aten.max_pool2d_with_indices.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,  # noqa: SLF001 - an operator's name
)


def _first_result(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    args, options = node.args, dict(node.kwargs)
    if node.target is _FIRST_RESULTS[0]:
        image, weight, bias, mean, variance, momentum, eps = args
        return graph.call_function(
            aten.batch_norm.default, (image, weight, bias, mean, variance, False, momentum, eps, False)
        )
    if node.target is aten.native_layer_norm.default:
        return graph.call_function(aten.layer_norm.default, args)
    if node.target is aten.native_group_norm.default:
        image, weight, bias, _, _, _, groups, eps = args
        return graph.call_function(aten.group_norm.default, (image, groups, weight, bias, eps))
    if node.target is aten.max_pool2d_with_indices.default:
        return graph.call_function(aten.max_pool2d.default, args)
    query, key, value, *rest = args
    dropout, is_causal = rest[0] if rest else 0.0, rest[1] if len(rest) > 1 else False
    if dropout != 0.0:
        return None
    mask = options.pop("attn_mask", None)
    return graph.call_function(
        aten.scaled_dot_product_attention.default, (query, key, value, mask, 0.0, is_causal), options
    )


def _rewrite_product(graph: fx.Graph, node: fx.Node) -> None:
    """A product x @ w.T (+ b) is a linear layer, if w is stored as it is for one."""
    is_sum = node.target is aten.addmm.default
    bias, image, turned = node.args if is_sum else (None, *node.args)
    if node.kwargs or not isinstance(turned, fx.Node) or not _is_transposed_weight(turned):
        return
    if is_sum and not (isinstance(bias, fx.Node) and bias.op == "get_attr"):
        return
    node.target, node.args = aten.linear.default, (image, turned.args[0], bias)
    if not turned.users:
        graph.erase_node(turned)


def _is_transposed_weight(node: fx.Node) -> bool:
    source = node.args[0] if node.op == "call_function" and node.args else None
    swaps: dict[object, tuple[object, ...]] = {
        aten.t.default: (),
        aten.permute.default: ([1, 0],),
        aten.transpose.int: (0, 1),
    }
    if not isinstance(source, fx.Node) or source.op != "get_attr" or node.target not in swaps:
        return False
    rest: tuple[object, ...] = tuple(node.args[1:])
    return rest == swaps[node.target]


def _is_first(user: fx.Node) -> bool:
    return user.target is get_item and bool(user.args[1] == 0)
