"""Which tensors of a file's graph may be trained: what its layers read as weights, whatever the file calls it.

A file says of each tensor whether it is a parameter. A network whose weights are kept as buffers answers alike, and
none of it could be repaired.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import fx, nn

aten = torch.ops.aten

# Where layers have their weights and biases; products have one on either side.
_WEIGHTS = {
    aten.conv1d.default: (1, 2),
    aten.conv2d.default: (1, 2),
    aten.conv2d.padding: (1, 2),
    aten.conv3d.default: (1, 2),
    aten.convolution.default: (1, 2),
    aten.conv_transpose2d.input: (1, 2),
    aten.linear.default: (1, 2),
    aten.addmm.default: (0, 1, 2),
    aten.mm.default: (0, 1),
    aten.bmm.default: (0, 1),
    aten.matmul.default: (0, 1),
    aten.baddbmm.default: (0, 1, 2),
    aten.batch_norm.default: (1, 2),
    aten.layer_norm.default: (2, 3),
    aten.group_norm.default: (2, 3),
    aten.prelu.default: (1,),
    aten.embedding.default: (0,),
}


def let_learn(graph: fx.GraphModule, names: Collection[str]) -> None:
    """Make parameters of those floating-point buffers among `names` that a layer's weight or bias is made of."""
    read = {name for name in _weights(graph.graph) if name in names}
    buffers = dict(graph.named_buffers(remove_duplicate=False))
    chosen = {id(buffers[name]) for name in read if name in buffers and buffers[name].is_floating_point()}
    made: dict[int, nn.Parameter] = {}
    for name, buffer in buffers.items():
        if id(buffer) in chosen:
            path, _, leaf = name.rpartition(".")
            owner = graph.get_submodule(path)
            delattr(owner, leaf)
            owner.register_parameter(leaf, made.setdefault(id(buffer), nn.Parameter(buffer)))


def _weights(graph: fx.Graph) -> Iterator[str]:
    """The stored tensors that layers read as weights, directly or worked out of others without the images."""
    of_images: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(source in of_images for source in node.all_input_nodes):
            of_images.add(node)
    for node in graph.nodes:
        for position in _WEIGHTS.get(node.target, ()):
            argument = node.args[position] if position < len(node.args) else None
            if isinstance(argument, fx.Node) and argument not in of_images:
                yield from _stored(argument)


def _stored(node: fx.Node) -> Iterator[str]:
    seen, waiting = {node}, [node]
    while waiting:
        one = waiting.pop()
        if one.op == "get_attr":
            yield str(one.target)
        fresh = [source for source in one.all_input_nodes if source not in seen]
        seen.update(fresh)
        waiting.extend(fresh)
