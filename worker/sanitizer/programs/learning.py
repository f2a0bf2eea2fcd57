"""Which tensors of a file's graph may be trained: what its layers read as weights, whatever the file calls it.

A file says of each tensor whether it is a parameter. A network whose weights are kept as buffers answers alike, and
none of it could be repaired.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import fx, nn

from worker.sanitizer.programs.ancestry import Ancestry

aten = torch.ops.aten

# Of a network's weights.
NOTEWORTHY_SHARE = 0.05
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
    """Make parameters of those floating-point buffers among `names` that a layer's weight or bias is made of.

    Only where no parameter has a part in that weight, so that masks and the like stay as they are, and where such
    weights are more than `NOTEWORTHY_SHARE` of all: a filter that is fixed for good is no weight to learn.
    """
    buffers = dict(graph.named_buffers(remove_duplicate=False))
    parameters = dict(graph.named_parameters())
    chosen = {
        id(buffers[name])
        for made_of in _weights(graph.graph)
        if not made_of & parameters.keys()
        for name in made_of & buffers.keys() & set(names)
        if buffers[name].is_floating_point()
    }
    held = sum({id(buffer): buffer.numel() for buffer in buffers.values() if id(buffer) in chosen}.values())
    if held <= NOTEWORTHY_SHARE * (held + sum(parameter.numel() for parameter in parameters.values())):
        return
    made: dict[int, nn.Parameter] = {}
    for name, buffer in buffers.items():
        if id(buffer) in chosen:
            path, _, leaf = name.rpartition(".")
            owner = graph.get_submodule(path)
            delattr(owner, leaf)
            owner.register_parameter(leaf, made.setdefault(id(buffer), nn.Parameter(buffer)))


def _weights(graph: fx.Graph) -> Iterator[set[str]]:
    """What each weight or bias of a layer is made of: the names of stored tensors, if the images have no part in it."""
    of_images = Ancestry(next(iter(graph.find_nodes(op="placeholder"))))
    for node in graph.nodes:
        for position in _WEIGHTS.get(node.target, ()):
            argument = node.args[position] if position < len(node.args) else None
            if isinstance(argument, fx.Node) and argument not in of_images:
                yield set(_stored(argument))


def _stored(node: fx.Node) -> Iterator[str]:
    seen, waiting = {node}, [node]
    while waiting:
        one = waiting.pop()
        if one.op == "get_attr":
            yield str(one.target)
        fresh = [source for source in one.all_input_nodes if source not in seen]
        seen.update(fresh)
        waiting.extend(fresh)
