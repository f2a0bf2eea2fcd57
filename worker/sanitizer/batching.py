"""Run graphs that were made for one batch size, and work out the shape of every value before anything is computed.

Shapes: N images, B the graph's own batch size, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

Observer = Callable[[Tensor], Tensor | None]

# Of one image. Real networks stay below a tenth of it; a hostile graph asks for terabytes in one small node.
MAX_VALUE_BYTES = 512 * 2**20
# What torch raises on arguments that do not fit each other, wherever it notices.
RUN_ERRORS = (
    *(RuntimeError, ValueError, TypeError, AssertionError, ArithmeticError),
    *(LookupError, AttributeError, MemoryError),
)
_TOLERANCE = 1e-4


def padded(inputs_NCHW: Tensor, batch_size: int) -> list[Tensor]:
    """Chunks (B, C, H, W) of the images; the last image fills the last chunk."""
    missing = -len(inputs_NCHW) % batch_size
    filler = inputs_NCHW[-1:].expand(missing, *inputs_NCHW.shape[1:])
    return list(torch.split(torch.cat([inputs_NCHW, filler]), batch_size))


def run_together(
    graph: fx.GraphModule, inputs_NCHW: Tensor, batch_size: int, observers: Mapping[str, Observer]
) -> list[Any]:
    """The graph's outputs on each padded chunk, all chunks moving node by node.

    An observer sees its node's value once, for all images and without the padding, as if the batch were free; what it
    returns, or what it was shown, goes on from there. Observed values have the images in their first dimension, each
    with one or more rows.
    """
    chunks = padded(inputs_NCHW, batch_size)
    runs = [fx.Interpreter(graph) for _ in chunks]
    for run, chunk in zip(runs, chunks, strict=True):
        run.env, run.args_iter = {}, iter((chunk,))
    for node in graph.graph.nodes:
        values = [run.run_node(node) for run in runs]
        if node.op == "output":
            return values
        if node.name in observers:
            values = _shown(values, len(inputs_NCHW), batch_size, observers[node.name])
        for run, value in zip(runs, values, strict=True):
            run.env[node] = value
            for used in run.user_to_last_uses.get(node, []):
                del run.env[used]
    raise AssertionError("an fx graph ends with its output")


def propagate(graph: fx.GraphModule, example_NCHW: Tensor) -> None:
    """Give every node the shape of its value as `meta["val"]`, worked out without computing it.

    Raises:
        RuntimeError: a value is larger than MAX_VALUE_BYTES for an image; or another of RUN_ERRORS.
    """
    _place(graph, example_NCHW.device)
    if all("val" in node.meta for node in graph.graph.nodes if node.op != "output"):
        return
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        FakeTensorProp(graph, mode).propagate_dont_convert_inputs(mode.from_tensor(example_NCHW))
    for node in graph.graph.nodes:
        values = node.meta.get("val")
        for value in values if isinstance(values, (tuple, list)) else (values,):
            if isinstance(value, Tensor) and value.numel() * value.itemsize > MAX_VALUE_BYTES * len(example_NCHW):
                raise RuntimeError(f"a value of shape {tuple(value.shape)} is larger than any network needs")


def is_free(graph: fx.GraphModule, example_NCHW: Tensor) -> bool:
    """Whether a graph made for B images gives the same logits on another number of them, tried on noise.

    Most convolutional networks never write their batch size into the graph; running them freely is faster.
    """
    batch_size = len(example_NCHW)
    number = 2 if batch_size != 2 else 3
    noise_NCHW = noise(example_NCHW, number)
    with torch.no_grad():
        fixed = torch.cat([_tensor(graph(chunk)) for chunk in padded(noise_NCHW, batch_size)])[:number]
    return agree(logits_or_none(graph, noise_NCHW), fixed)


def noise(example_NCHW: Tensor, number: int) -> Tensor:
    """So many images of noise of the example's shape, the same ones always."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(number, *example_NCHW.shape[1:], generator=generator).to(example_NCHW.device)


def logits_or_none(graph: fx.GraphModule, inputs_NCHW: Tensor) -> Tensor | None:
    """What the graph returns, or None where it does not run on such inputs."""
    try:
        with torch.no_grad():
            return _tensor(graph(inputs_NCHW))
    except RUN_ERRORS:
        return None


def agree(logits: Tensor | None, expected: Tensor) -> bool:
    """Whether these are the same logits but for rounding."""
    if logits is None or logits.shape != expected.shape:
        return False
    return torch.allclose(logits, expected, rtol=_TOLERANCE, atol=_TOLERANCE)


def _tensor(output: Any) -> Tensor:  # noqa: ANN401 - what a graph returned
    while isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise TypeError("the network must return a tensor")
    return output


def _shown(values: list[Tensor], num_images: int, batch_size: int, observer: Observer) -> list[Tensor]:
    whole = torch.cat(values)
    num_rows = num_images * len(whole) // (batch_size * len(values))
    shown = whole[:num_rows]
    replaced = observer(shown)
    # What was shown goes on in any case, so that a gradient taken with respect to it exists.
    going_on = torch.cat([shown if replaced is None else replaced, whole[num_rows:]])
    return list(torch.split(going_on, len(values[0])))


def _place(graph: fx.GraphModule, device: torch.device) -> None:
    """Let the operators that make tensors out of nothing make them where the network's tensors are."""

    def placed(value: Any) -> Any:  # noqa: ANN401 - an argument of a node
        return device if isinstance(value, torch.device) else value

    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        node.args = tuple(placed(value) for value in node.args)
        node.kwargs = {name: placed(value) for name, value in node.kwargs.items()}
        makes_device = isinstance(node.target, OpOverload) and any(
            argument.name == "device"
            for argument in node.target._schema.arguments  # noqa: SLF001 - no other way
        )
        if makes_device and not node.all_input_nodes and "device" not in node.kwargs:
            node.kwargs = {**node.kwargs, "device": device}
    graph.recompile()
