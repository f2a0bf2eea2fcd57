"""Keep the channels of a network's maps side by side in memory: on a CPU both passes through convolutions are faster.

Shapes: N images, C channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from worker.sanitizer import batching


def put_channels_last(graph: fx.GraphModule, inputs_NCHW: Tensor, expected: Tensor) -> None:
    """Lay out the weights of convolutions with the channels last; the maps that they make follow.

    No value changes. A graph that asks how its values lie in memory may refuse the other layout or answer otherwise;
    it must give the same logits, or else it stays as it was. On CUDA nothing was timed, and nothing is done.

    Args:
        graph: Changed in place; its tensors stay the same objects.
        inputs_NCHW: As many images as the graph takes.
        expected: The graph's logits of them.
    """
    if inputs_NCHW.device.type != "cpu":
        return
    before = {name: tensor.data for name, tensor in graph.named_parameters() if tensor.dim() == inputs_NCHW.dim()}
    for name, data in before.items():
        graph.get_parameter(name).data = data.contiguous(memory_format=torch.channels_last)
    if not batching.agree(batching.logits_or_none(graph, inputs_NCHW), expected):
        for name, data in before.items():
            graph.get_parameter(name).data = data
