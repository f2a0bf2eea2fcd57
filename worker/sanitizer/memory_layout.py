"""Keep the channels of a network's maps side by side in memory: on a CPU both passes through convolutions are faster.

Shapes: N images, C channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from worker.sanitizer import batching


def put_channels_last(graph: fx.GraphModule, example_NCHW: Tensor) -> None:
    """Lay out the weights of convolutions with the channels last; the maps that they make follow.

    No value changes. A graph that asks how its values lie in memory may refuse the other layout or answer otherwise;
    on noise it must give the same logits, or else it stays as it was. On CUDA nothing was timed, and nothing is done.

    Args:
        graph: Changed in place; its tensors stay the same objects.
        example_NCHW: As many images as the graph takes.
    """
    if example_NCHW.device.type != "cpu":
        return
    before = {name: tensor.data for name, tensor in graph.named_parameters() if tensor.dim() == example_NCHW.dim()}
    noise_NCHW = batching.noise(example_NCHW, len(example_NCHW))
    expected = batching.logits_or_none(graph, noise_NCHW)
    for name, data in before.items():
        graph.get_parameter(name).data = data.contiguous(memory_format=torch.channels_last)
    if expected is None or not batching.agree(batching.logits_or_none(graph, noise_NCHW), expected):
        for name, data in before.items():
            graph.get_parameter(name).data = data
