"""One internal view of any architecture: a graph of aten operators, its channels, its taps, the tensors they own.

Shapes: N images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from worker.sanitizer import batching
from worker.sanitizer.capping import Bounds
from worker.sanitizer.errors import SanitizerError
from worker.sanitizer.folding import folded
from worker.sanitizer.memory_layout import put_channels_last
from worker.sanitizer.out_of_place import out_of_place
from worker.sanitizer.sites import Kind, Site, find_sites
from worker.sanitizer.sites.finding import layer_depths
from worker.sanitizer.sites.operators import shape
from worker.sanitizer.spec import InputSpec
from worker.sanitizer.straight_through import blind, passing

__all__ = ["Network", "NetworkRefusedError", "Observer", "Site", "from_graph", "from_module", "frozen"]

# Of the layers left out, named in a refusal.
MAX_REASONS = 5
# How far an image's largest logit lies above its median one, in the median of clean images; some 10 in small networks
# trained by cross-entropy. Outside these bounds gradients are too small or too large for a search, so that a network
# could hide by one factor in its last layer; its logits are then brought to the nearer bound. No answer changes by it.
SPREADS = (1.0, 100.0)
# Beyond it float32 has no numbers; a network of such logits answers nothing that could be searched for.
LARGEST_SCALE = 1e30
# What torch says where a gradient's ingredients are gone.
_WRITTEN_OVER = "modified by an inplace operation"

Observer = batching.Observer


class NetworkRefusedError(SanitizerError):
    """The architecture cannot be turned into a graph, or has no channel that could be silenced."""

    code = "unsupported_network"


class Network:
    """A classifier on pixels in [0, 1]: normalisation, then the graph. Always in inference mode of its norms.

    `quick` is a graph of the same function on the same tensors: calls run it, and observers see the other one.
    A graph made for `batch_size` images alone runs in padded chunks; callers never see the padding.
    `bounds` are those of activations, where there are any.
    `logit_scale` multiplies the logits, and is in no file.
    """

    def __init__(
        self, graph: fx.GraphModule, input_spec: InputSpec, batch_size: int | None = None, *, quick: fx.GraphModule
    ) -> None:
        self.graph = graph
        self._is_folded = quick is not graph
        self._quick = passing(quick)
        self.batch_size = batch_size
        self.sites, self.skipped = find_sites(graph)
        self.tensors: dict[str, Tensor] = {
            **dict(graph.named_parameters(remove_duplicate=False)),
            **dict(graph.named_buffers(remove_duplicate=False)),
        }
        self.bounds = Bounds(graph)
        self.logit_scale = 1.0
        device = next(iter(self.tensors.values())).device if self.tensors else torch.device("cpu")
        self._mean_1C11 = torch.tensor(input_spec.mean, device=device).view(1, -1, 1, 1)
        self._std_1C11 = torch.tensor(input_spec.std, device=device).view(1, -1, 1, 1)

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self._mean_1C11.device

    def twin(self) -> Network:
        """A copy with tensors of its own."""
        with warnings.catch_warnings():
            # Torch's own, at its own class of an exported program's inputs.
            warnings.simplefilter("ignore", FutureWarning)
            return copy.deepcopy(self)

    @property
    def num_outputs(self) -> int | None:
        """Logits of an image, None where the graph does not say."""
        value = next(iter(self.graph.graph.find_nodes(op="output"))).args[0]
        while isinstance(value, (tuple, list)) and value:
            value = value[0]
        sizes = shape(value) if isinstance(value, fx.Node) else None
        return None if sizes is None or len(sizes) != 2 else sizes[1]

    def parameters(self) -> dict[str, Tensor]:
        """The floating-point tensors that gradient descent may change, by state-dict name."""
        return dict(self.graph.named_parameters())

    def blind_operators(self) -> list[str]:
        """The operators that work on the images and pass no gradient, by their names."""
        return blind(self.graph)

    def fixed_share(self) -> float:
        """The share of the numbers that the graph computes with which no training may change, but for statistics."""
        stored = {str(node.target) for node in self.graph.graph.nodes if node.op == "get_attr"}
        norms = [node for node in self.graph.graph.nodes if node.target is torch.ops.aten.batch_norm.default]
        statistics = {str(one.target) for node in norms for one in node.args[3:5] if isinstance(one, fx.Node)}
        numbers = {
            name: tensor.numel()
            for name, tensor in self.tensors.items()
            if name in stored - statistics - self.bounds.tensors().keys() and tensor.is_floating_point()
        }
        fixed = sum(number for name, number in numbers.items() if not isinstance(self.tensors[name], nn.Parameter))
        return fixed / max(1, sum(numbers.values()))

    def __call__(self, pixels_NCHW: Tensor, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
        """Logits (N, K) of pixels in [0, 1]; `tensors` stand in for those of the same name (for soft masks)."""
        inputs_NCHW = (pixels_NCHW - self._mean_1C11) / self._std_1C11

        def forward(chunk_NCHW: Tensor) -> Tensor:
            if tensors is None:
                return self._scaled(self._quick(chunk_NCHW))
            return self._scaled(torch.func.functional_call(self._quick, dict(tensors), (chunk_NCHW,), strict=False))

        if self.batch_size is None:
            return forward(inputs_NCHW)
        chunks = batching.padded(inputs_NCHW, self.batch_size)
        return torch.cat([forward(chunk) for chunk in chunks])[: len(inputs_NCHW)]

    def observe(self, pixels_NCHW: Tensor, observers: Mapping[str, Observer]) -> Tensor:
        """Logits (N, K), showing each named node's value to its observer as it is computed.

        An observer that returns a tensor replaces the value, e.g. with a masked or capped one.
        """
        inputs_NCHW = (pixels_NCHW - self._mean_1C11) / self._std_1C11
        if self.batch_size is None:
            return self._scaled(_Observing(self.graph, observers).run(inputs_NCHW))
        outputs = batching.run_together(self.graph, inputs_NCHW, self.batch_size, observers)
        return torch.cat([self._scaled(output) for output in outputs])[: len(inputs_NCHW)]

    def scale_logits(self, spread_N: Tensor) -> None:
        """Bring the logits within `SPREADS` from now on, by their spread on clean images."""
        spread = float(spread_N.double().median())
        if spread > 0 and math.isfinite(spread):
            scale = min(max(spread, SPREADS[0]), SPREADS[1]) / spread
            self.logit_scale *= scale if 1 / LARGEST_SCALE < scale < LARGEST_SCALE else 1.0

    def _scaled(self, output: Any) -> Tensor:  # noqa: ANN401 - what a foreign forward returned
        logits_NK = _logits(output)
        return logits_NK if self.logit_scale == 1.0 else logits_NK * self.logit_scale

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy these values, in whatever dtype, into the tensors of the same name."""
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                if name in tensors:
                    tensor.copy_(tensors[name])

    def value_names(self) -> dict[str, str]:
        """By site what the file calls its activations, of those that it has a place for bounds of."""
        names = self.bounds.value_names()
        nodes = {node.name: node for node in self.graph.graph.nodes}
        return {
            site.name: names[site.tap]
            for site in self.sites
            if site.tap in names and (sizes := shape(nodes[site.tap])) and sizes[site.axis] == site.num_channels
        }

    def cap(self, caps: Mapping[str, Tensor]) -> None:
        """Bound the activations of these sites from above, (C,) each, by nodes behind their taps.

        The bounds are tensors of the network from then on, so that `load` brings others.
        """
        is_new = self.bounds.put(
            {site.tap: (site.axis, caps[site.name].float().to(self.device)) for site in self.sites if site.name in caps}
        )
        if is_new:
            self._quick = passing(folded(self.graph) if self._is_folded else self.graph)
            self.tensors.update(self.bounds.tensors())

    def last_conv(self) -> Site:
        """The convolution with the most convolutions on the way to it, the layer that the paper prunes.

        Execution order alone would name the shortcut of a residual block, which often runs after its last convolution.
        Those that make a gate, of squeeze and excitation, do not count.
        Where nothing but patch embeddings is a convolution, as in vision transformers and mixers, it is the linear
        layer or attention with the most layers on the way to it.

        Raises:
            NetworkRefusedError: There is neither.
        """
        convs = [site for site in self.sites if site.kind == "conv" and not site.feeds_gate]
        if any(site.kind in {"linear", "head"} for site in self.sites):
            convs = [site for site in convs if not site.is_patch_embedding]
        if convs:
            depths = layer_depths(self.graph, convolutions_only=True)
            return max(reversed(convs), key=lambda site: depths[site.tap])
        others = self.deepest("linear", "head")
        if not others:
            raise NetworkRefusedError(
                "The network has neither a prunable convolution nor a prunable linear layer. Name the layers in "
                "`scope` instead."
            )
        return others[0]

    def deepest(self, *kinds: Kind) -> list[Site]:
        """The sites of these kinds, those with the most layers on the way to them first."""
        depths = layer_depths(self.graph, convolutions_only=False)
        sites = [site for site in reversed(self.sites) if site.kind in kinds]
        return sorted(sites, key=lambda site: -depths[site.tap])

    def site(self, name: str) -> Site:
        """The site of that name.

        Raises:
            NetworkRefusedError: There is none.
        """
        for site in self.sites:
            if site.name == name:
                return site
        known = ", ".join(site.name for site in self.sites[:5])
        raise NetworkRefusedError(f"The network has no prunable layer named {name!r}; the first are: {known}.")


def from_module(module: nn.Module, input_spec: InputSpec, names: Mapping[str, str] | None = None) -> Network:
    """The internal view of a trusted module (built by our registry), sharing its tensors.

    Args:
        module: In whatever mode.
        input_spec: Size and normalisation.
        names: What to call its tensors where the file calls them otherwise; paths that a module can have.

    Raises:
        NetworkRefusedError: It cannot be exported with a free batch size, or has nothing to prune.
    """
    module.eval().requires_grad_(True)
    example_NCHW = torch.zeros(2, len(input_spec.mean), input_spec.height, input_spec.width)
    example_NCHW = example_NCHW.to(next(module.parameters()).device)
    try:
        program = torch.export.export(module, (example_NCHW,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    # Transformers assert the one size of image that they were built for.
    except (AssertionError, RuntimeError, ValueError, TypeError, torch._dynamo.exc.TorchDynamoException) as error:  # noqa: SLF001
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise NetworkRefusedError(
            "This architecture does not run on inputs of the declared size, or has data-dependent control flow: "
            f"{reason}. Check input.height, input.width and architecture.in_channels."
        ) from error
    graph = program.module()
    assert isinstance(graph, fx.GraphModule)
    for node in list(graph.graph.nodes):
        if node.op == "call_module" and not node.users:  # The guard call repeats a shape check on every forward.
            graph.graph.erase_node(node)
    graph.recompile()
    named = _renamed(graph, names) if names else graph
    return _with_sites(Network(named, input_spec, quick=_made_quick(named, example_NCHW)))


def _renamed(graph: fx.GraphModule, names: Mapping[str, str]) -> fx.GraphModule:
    tensors: dict[str, Any] = dict(graph.named_parameters(remove_duplicate=False))
    tensors.update(graph.named_buffers(remove_duplicate=False))
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            # Constants that the export found are plain attributes.
            tensors.setdefault(node.target, attrgetter(node.target)(graph))
            node.target = names.get(node.target, node.target)
    return fx.GraphModule({names.get(name, name): tensor for name, tensor in tensors.items()}, graph.graph)


def from_graph(graph: fx.GraphModule, input_spec: InputSpec, batch_size: int | None = None) -> Network:
    """The internal view of a graph that a file carried, sharing its tensors.

    Args:
        graph: As `programs.Program` describes it.
        input_spec: Size and normalisation.
        batch_size: Of the graph, None where it is free. A graph that turns out to be right for others is freed.

    Raises:
        NetworkRefusedError: It does not run on images of the declared size, or has nothing to prune.
    """
    graph.requires_grad_(True)
    channels, device = len(input_spec.mean), next(iter(graph.parameters()), torch.empty(0)).device
    example_NCHW = torch.zeros(batch_size or 2, channels, input_spec.height, input_spec.width, device=device)
    try:
        batching.propagate(graph, example_NCHW)
        has_gradient = _has_gradient(graph, example_NCHW)
        if not has_gradient:
            graph = _private_writes_undone(graph, example_NCHW)
            has_gradient = _has_gradient(graph, example_NCHW)
        is_free = batch_size is None or batching.is_free(graph, example_NCHW)
    except batching.RUN_ERRORS as error:
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise NetworkRefusedError(
            f"The program does not run on {channels} channels of {input_spec.height} by {input_spec.width} pixels: "
            f"{reason}. Check input.height, input.width and architecture.in_channels."
        ) from error
    if not has_gradient:
        raise NetworkRefusedError(
            "The program passes no gradient from its answers back to its images, since a cast to whole numbers cuts it "
            "or a write in place destroys it, so that no trigger could be searched for. Export the network without "
            "that step, and prepare the images before it."
        )
    quick = _made_quick(graph, example_NCHW)
    return _with_sites(Network(graph, input_spec, None if is_free else batch_size, quick=quick))


def _private_writes_undone(graph: fx.GraphModule, example_NCHW: Tensor) -> fx.GraphModule:
    """One that does not write over what its gradient needs, if it answers alike; else the graph itself."""
    noise_NCHW = batching.noise(example_NCHW, len(example_NCHW))
    made, expected = out_of_place(graph), batching.logits_or_none(graph, noise_NCHW)
    is_same = expected is not None and batching.agree(batching.logits_or_none(made, noise_NCHW), expected)
    return made if is_same else graph


def _has_gradient(graph: fx.GraphModule, example_NCHW: Tensor) -> bool:
    """Whether there is a way back from the logits to the images, of which nothing was written over.

    Raises:
        RuntimeError: The graph does not run.
    """
    images_NCHW = batching.noise(example_NCHW, len(example_NCHW)).requires_grad_(True)
    try:
        with torch.enable_grad():
            total = _logits(graph(images_NCHW)).sum()
            return total.requires_grad and None not in torch.autograd.grad(total, images_NCHW, allow_unused=True)
    except RuntimeError as error:
        if _WRITTEN_OVER not in str(error):
            raise
        return False


def _made_quick(graph: fx.GraphModule, example_NCHW: Tensor) -> fx.GraphModule:
    """Lay the graph's tensors out for speed; return the graph to call, which is folded if it then answers alike."""
    noise_NCHW = batching.noise(example_NCHW, len(example_NCHW))
    expected = batching.logits_or_none(graph, noise_NCHW)
    if expected is None:
        return graph
    put_channels_last(graph, noise_NCHW, expected)
    made = folded(graph)
    return made if batching.agree(batching.logits_or_none(made, noise_NCHW), expected) else graph


def _with_sites(network: Network) -> Network:
    if not network.sites:
        named = "; ".join(f"{name}: {reason}" for name, reason in list(network.skipped.items())[:MAX_REASONS])
        raise NetworkRefusedError(
            "No channels were found that pruning could silence: no convolution, norm, hidden linear layer or "
            f"attention with stored tensors of its own. {f'Left out were {named}.' if named else ''}".strip()
        )
    return network


@contextmanager
def frozen(network: Network) -> Iterator[None]:
    """Within the block no parameter asks for a gradient; afterwards each asks as before."""
    parameters = list(network.parameters().values())
    before = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, required in zip(parameters, before, strict=True):
            parameter.requires_grad_(required)


class _Observing(fx.Interpreter):
    """Runs the graph and shows each value to its observer before anything downstream can change it in place."""

    def __init__(self, graph: fx.GraphModule, observers: Mapping[str, Observer]) -> None:
        super().__init__(graph)
        self.observers = observers

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401 - the type of fx.Interpreter's method
        value = super().run_node(n)
        observer = self.observers.get(n.name)
        if observer is None:
            return value
        replaced = observer(value)
        return value if replaced is None else replaced


def _logits(output: Any) -> Tensor:  # noqa: ANN401 - what a foreign forward returned
    while isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor) or output.dim() != 2:
        raise NetworkRefusedError("The network must return logits of shape (N, classes).")
    return output
