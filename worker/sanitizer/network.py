"""One internal view of any architecture: a graph of aten operators, its channels, its taps, the tensors they own.

Shapes: N images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from worker.sanitizer import batching
from worker.sanitizer.errors import SanitizerError
from worker.sanitizer.spec import InputSpec

aten = torch.ops.aten

CONVOLUTIONS = frozenset({aten.conv2d.default, aten.conv2d.padding, aten.convolution.default})
# Each maps zero to zero, so a silenced channel stays silent behind it.
ACTIVATIONS = frozenset(
    {
        *(aten.relu.default, aten.relu_.default, aten.relu6.default, aten.relu6_.default),
        *(aten.leaky_relu.default, aten.leaky_relu_.default, aten.elu.default, aten.elu_.default),
        *(aten.silu.default, aten.silu_.default, aten.gelu.default, aten.mish.default, aten.mish_.default),
        *(aten.hardtanh.default, aten.hardtanh_.default, aten.hardswish.default, aten.hardswish_.default),
        *(aten.tanh.default, aten.tanh_.default, aten.dropout.default),
    }
)
HEAD_TAIL = frozenset(
    {
        *(aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default, aten.mean.dim, aten.dropout.default),
        *(aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten.squeeze.dim, aten.squeeze.dims),
    }
)

Observer = batching.Observer


class NetworkRefusedError(SanitizerError):
    """The architecture cannot be turned into a graph, or has no channel that could be silenced."""

    code = "unsupported_network"


@dataclass(frozen=True, slots=True)
class Site:
    """A place whose channels can be silenced: a convolution with its batch norm, or a norm on a residual stream.

    Attributes:
        name: State-dict path of the layer, e.g. `layer1.0.conv1`.
        kind: `conv`, or `norm` for a batch norm that no single convolution feeds.
        num_channels: C.
        tap: Graph node whose value (N, C, H, W) is the activation map.
        owned: Tensors whose slices [c] belong to channel c alone; all zero makes the tap's channel c zero.
        scale: The owned tensor, or tensors, that a soft mask multiplies (norm scale and shift, else weight and bias).
        norm: Batch-norm prefix in the state dict, None without one.
        weight: The convolution's weight name, None where it is computed rather than stored.
        norm_input: Graph node whose value (N, C, H, W) the batch norm reads, None without one.
        norm_eps: What the batch norm adds to the variance under its root.
    """

    name: str
    kind: Literal["conv", "norm"]
    num_channels: int
    tap: str
    owned: tuple[str, ...]
    scale: tuple[str, ...]
    norm: str | None
    weight: str | None
    norm_input: str | None = None
    norm_eps: float = 0.0


class Network:
    """A classifier on pixels in [0, 1]: normalisation, then the graph. Always in inference mode of its norms.

    A graph made for `batch_size` images alone runs in padded chunks; callers never see the padding.
    """

    def __init__(self, graph: fx.GraphModule, input_spec: InputSpec, batch_size: int | None = None) -> None:
        self.graph = graph
        self.batch_size = batch_size
        self.sites, self.skipped = _find_sites(graph)
        self._depths = _conv_depths(graph)
        self.tensors: dict[str, Tensor] = {
            **dict(graph.named_parameters(remove_duplicate=False)),
            **dict(graph.named_buffers(remove_duplicate=False)),
        }
        device = next(iter(self.tensors.values())).device if self.tensors else torch.device("cpu")
        self._mean_1C11 = torch.tensor(input_spec.mean, device=device).view(1, -1, 1, 1)
        self._std_1C11 = torch.tensor(input_spec.std, device=device).view(1, -1, 1, 1)

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self._mean_1C11.device

    def parameters(self) -> dict[str, Tensor]:
        """The floating-point tensors that gradient descent may change, by state-dict name."""
        return dict(self.graph.named_parameters())

    def __call__(self, pixels_NCHW: Tensor, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
        """Logits (N, K) of pixels in [0, 1]; `tensors` stand in for those of the same name (for soft masks)."""
        inputs_NCHW = (pixels_NCHW - self._mean_1C11) / self._std_1C11

        def forward(chunk_NCHW: Tensor) -> Tensor:
            if tensors is None:
                return _logits(self.graph(chunk_NCHW))
            return _logits(torch.func.functional_call(self.graph, dict(tensors), (chunk_NCHW,), strict=False))

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
            return _logits(_Observing(self.graph, observers).run(inputs_NCHW))
        outputs = batching.run_together(self.graph, inputs_NCHW, self.batch_size, observers)
        return torch.cat([_logits(output) for output in outputs])[: len(inputs_NCHW)]

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy these values, in whatever dtype, into the tensors of the same name."""
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                if name in tensors:
                    tensor.copy_(tensors[name])

    def last_conv(self) -> Site:
        """The convolution with the most convolutions on the way to it, the layer that the paper prunes.

        Execution order alone would name the shortcut of a residual block, which often runs after its last convolution.

        Raises:
            NetworkRefusedError: There is no prunable convolution.
        """
        convs = [site for site in self.sites if site.kind == "conv"]
        if not convs:
            raise NetworkRefusedError("The network has no prunable convolution. Name the layers in `scope` instead.")
        return max(reversed(convs), key=lambda site: self._depths[site.tap])

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


def from_module(module: nn.Module, input_spec: InputSpec) -> Network:
    """The internal view of a trusted module (built by our registry), sharing its tensors.

    Raises:
        NetworkRefusedError: It cannot be exported with a free batch size, or has nothing to prune.
    """
    module.eval().requires_grad_(True)
    example_NCHW = torch.zeros(2, len(input_spec.mean), input_spec.height, input_spec.width)
    example_NCHW = example_NCHW.to(next(module.parameters()).device)
    try:
        program = torch.export.export(module, (example_NCHW,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    except (RuntimeError, ValueError, TypeError, torch._dynamo.exc.TorchDynamoException) as error:  # noqa: SLF001
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
    return _with_sites(Network(graph, input_spec))


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
        is_free = batch_size is None or batching.is_free(graph, example_NCHW)
    except batching.RUN_ERRORS as error:
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise NetworkRefusedError(
            f"The program does not run on {channels} channels of {input_spec.height} by {input_spec.width} pixels: "
            f"{reason}. Check input.height, input.width and architecture.in_channels."
        ) from error
    return _with_sites(Network(graph, input_spec, None if is_free else batch_size))


def _with_sites(network: Network) -> Network:
    if not network.sites:
        raise NetworkRefusedError(
            "No convolution or batch norm with channels of its own was found, so there is nothing that pruning "
            "could silence. Networks without convolutions are not supported."
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


def _find_sites(graph: fx.GraphModule) -> tuple[tuple[Site, ...], dict[str, str]]:
    sites: list[Site] = []
    skipped: dict[str, str] = {}
    claimed_norms: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target in CONVOLUTIONS:
            site, norm = _conv_site(node)
            reason = _why_not(node, site)
            if reason is not None:
                skipped[site.name] = reason
            else:
                sites.append(site)
                claimed_norms.update([norm] if norm is not None else [])
        elif node.target is aten.batch_norm.default and node not in claimed_norms and _is_inference_norm(node):
            site = _norm_site(node)
            if site.owned:
                sites.append(site)
            else:
                skipped[site.name] = "a norm without scale and shift"
    # A tensor used at two places would be silenced at both while only one was profiled.
    uses: dict[str, int] = {}
    for site in sites:
        for name in site.owned:
            uses[name] = uses.get(name, 0) + 1
    shared = {site.name for site in sites if any(uses[name] > 1 for name in site.owned)}
    skipped.update(dict.fromkeys(shared, "its tensors are shared with another layer"))
    return tuple(site for site in sites if site.name not in shared), skipped


def _conv_depths(graph: fx.GraphModule) -> dict[str, int]:
    """Per node the largest number of convolutions on a path from the input to it, itself included."""
    depths: dict[str, int] = {}
    for node in graph.graph.nodes:
        before = max((depths[source.name] for source in node.all_input_nodes), default=0)
        depths[node.name] = before + (node.target in CONVOLUTIONS)
    return depths


def _conv_site(conv: fx.Node) -> tuple[Site, fx.Node | None]:
    weight, bias = _parameter(conv, 1), _parameter(conv, 2)
    norm = _only_user(conv)
    if norm is not None and not (norm.target is aten.batch_norm.default and _is_inference_norm(norm)):
        norm = None
    end = conv if norm is None else norm
    owned = [name for name in (weight, bias) if name is not None]
    scale = list(owned)
    prefix = None
    if norm is not None:
        affine = [name for name in (_parameter(norm, 1), _parameter(norm, 2)) if name is not None]
        running_mean = _parameter(norm, 3)
        prefix = running_mean.rpartition(".")[0] if running_mean is not None else None
        # Without a scale of its own the norm turns a zero into -mean/std, unless its running mean is zeroed too.
        own_mean = [] if affine or running_mean is None else [running_mean]
        owned += affine + own_mean
        scale = affine or [*scale, *own_mean]
    name = (weight or prefix or conv.name).removesuffix(".weight")
    site = Site(
        name, "conv", _num_channels(conv), _tap(end), tuple(owned), tuple(scale), prefix, weight,
        None if norm is None else conv.name, 0.0 if norm is None else _norm_eps(norm),
    )  # fmt: skip
    return site, norm


def _norm_site(norm: fx.Node) -> Site:
    affine = tuple(name for name in (_parameter(norm, 1), _parameter(norm, 2)) if name is not None)
    running_mean = _parameter(norm, 3)
    prefix = (running_mean or norm.name).rpartition(".")[0] or norm.name
    return Site(
        prefix, "norm", _num_channels(norm), _tap(norm), affine, affine, prefix, None,
        norm.all_input_nodes[0].name, _norm_eps(norm),
    )  # fmt: skip


def _why_not(conv: fx.Node, site: Site) -> str | None:
    if conv.target is aten.convolution.default and conv.args[6]:
        return "transposed convolution"
    if conv.meta["val"].dim() != 4:
        return "not a two-dimensional convolution"
    if not site.scale or (site.weight is None and site.norm is None):
        return "its weight is computed, not stored"
    if _leads_to_output(conv):
        return "it is the classifier itself"
    return None


def _leads_to_output(node: fx.Node) -> bool:
    """Whether nothing but pooling and reshaping lies between the node and the logits."""
    while True:
        user = _only_user(node)
        if user is None:
            return False
        if user.op == "output":
            return True
        if user.target not in HEAD_TAIL and user.target not in ACTIVATIONS:
            return False
        node = user


def _is_inference_norm(norm: fx.Node) -> bool:
    """A batch norm that uses its stored statistics and, alone or through its convolution, can be silenced."""
    return norm.args[5] is False and norm.meta["val"].dim() == 4 and _parameter(norm, 3) is not None


def _tap(node: fx.Node) -> str:
    """The node itself, or the activation function that is its only reader."""
    user = _only_user(node)
    while user is not None and user.target in ACTIVATIONS:
        node, user = user, _only_user(user)
    return node.name


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _parameter(node: fx.Node, position: int) -> str | None:
    argument = node.args[position] if len(node.args) > position else None
    return str(argument.target) if isinstance(argument, fx.Node) and argument.op == "get_attr" else None


def _norm_eps(norm: fx.Node) -> float:
    eps = norm.args[7]
    assert isinstance(eps, float)
    return eps


def _num_channels(node: fx.Node) -> int:
    return int(node.meta["val"].shape[1])
