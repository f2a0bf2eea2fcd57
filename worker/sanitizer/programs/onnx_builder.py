"""Builds the graph of aten operators for an ONNX file, and folds on the way what depends on no image.

Every value is followed for several batch sizes at once (one where the file fixes the batch): as a real tensor where it
is known, else as a meta tensor that has only shape and dtype. What differs between batch sizes depends on the batch;
so arithmetic on shapes, of whatever kind, is done on plain numbers and needs no algebra.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from worker.sanitizer.programs.ancestry import Ancestry
from worker.sanitizer.programs.onnx_names import StateNames
from worker.sanitizer.programs.onnx_tensors import FileTensor
from worker.sanitizer.programs.onnx_values import AS_IN_FILE, Dim, Extent, Layout, Origin, Value, fill, held, values_in
from worker.sanitizer.refusals import OnnxOperatorError, OnnxTooComplexError

# Two primes, so that a multiple of the batch size is told from a constant and from another multiple.
FREE_BATCHES = (3, 7)
# Per image; the largest activation of the networks that are repaired here is some twenty times smaller.
MAX_VALUES_PER_IMAGE = 2**26
MAX_KNOWN_VALUES = 2**25

aten = torch.ops.aten
_CALL_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError, AssertionError, OverflowError)


class Builder:
    """The graph that is being built.

    Attributes:
        batches: The batch sizes followed.
        root: Holds the network's tensors.
        origins: For each tensor that a change is written back to, by its name in the network.
    """

    def __init__(self, files: dict[str, FileTensor], batches: tuple[int, ...]) -> None:
        self.batches = batches
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.origins: dict[str, Origin] = {}
        self._files = files
        self._names = StateNames()
        self._attributes: dict[str, fx.Node] = {}
        self._of_weight: dict[str, Origin] = {}
        self._constants: dict[int, tuple[fx.Node, Tensor]] = {}
        self._images: fx.Node | None = None
        self._of_images: Ancestry | None = None
        self._known_values = 0
        self.where = "the graph"

    # Values -----------------------------------------------------------------------------------------------------------

    def images(self, channels: int, height: int, width: int) -> Value:
        """The graph's placeholder (N, C, H, W)."""
        self._images = self.graph.placeholder("images")
        self._of_images = Ancestry(self._images)
        self._images.meta["shape"] = (self.batches[0], channels, height, width)
        return Value(
            tuple(torch.empty(batch, channels, height, width, device="meta") for batch in self.batches), self._images
        )

    def file_tensor(self, name: str) -> Value:
        """A tensor of the file, in float32 where it is floating-point."""
        tensor = self._files[name].tensor
        if not tensor.is_floating_point():
            return self.known(tensor)
        return Value((tensor.float(),) * len(self.batches), weight=name)

    def known(self, *tensors: Tensor) -> Value:
        """A known value: one tensor, or one for each batch size followed."""
        return Value(tensors if len(tensors) > 1 else tensors * len(self.batches))

    def constant(self, value: Value) -> Value:
        """The value as a number that is not trained and not written back, though it may lie in the file."""
        return Value(value.samples) if value.is_known else value

    def is_same(self, value: Value) -> bool:
        """Whether a known value is the same for every batch size."""
        first = value.samples[0]
        return all(other is first or torch.equal(first, other) for other in value.samples[1:])

    def number(self, value: Value) -> float | int | None:
        """A known single number that does not depend on the batch, else None."""
        if not value.is_known or value.samples[0].numel() != 1 or not self.is_same(value):
            return None
        return value.samples[0].item()

    def numbers(self, value: Value) -> list[float]:
        """A known vector of numbers that do not depend on the batch."""
        if not value.is_known or not self.is_same(value):
            raise self.refusal("needs numbers that are known before an image is seen, and the same for any batch")
        return [float(item) for item in value.samples[0].reshape(-1).tolist()]

    def dims(self, value: Value) -> list[Dim]:
        """A known vector of whole numbers, which may depend on the batch."""
        if not value.is_known:
            raise self.refusal("has a shape that depends on the images")
        rows = [sample.reshape(-1).tolist() for sample in value.samples]
        return [column[0] if len(set(column)) == 1 else Extent(column) for column in zip(*rows, strict=True)]

    def ints(self, value: Value) -> list[int]:
        """A known vector of whole numbers that do not depend on the batch."""
        dims = self.dims(value)
        if any(isinstance(dim, Extent) for dim in dims):
            raise self.refusal("depends on the batch size in a way that is not supported")
        return [int(dim) for dim in dims if not isinstance(dim, Extent)]

    def shape(self, value: Value) -> list[Dim]:
        """The extents of a value."""
        columns = zip(*(sample.shape for sample in value.samples), strict=True)
        return [column[0] if len(set(column)) == 1 else Extent(tuple(column)) for column in columns]

    def extent(self, value: Value, dim: int) -> int:
        """One extent, which may not depend on the batch."""
        size = self.shape(value)[dim]
        if isinstance(size, Extent):
            raise self.refusal("needs an extent that depends on the batch size")
        return size

    def depends_on_images(self, value: Value) -> bool:
        """Whether a value is not the same whatever the images."""
        return value.node is not None and self._of_images is not None and value.node in self._of_images

    # Calls ------------------------------------------------------------------------------------------------------------

    def call(self, target: OpOverload, *args: Any, **options: Any) -> Value:  # noqa: ANN401 - what the operator takes
        """Apply an operator: at once where every argument is known, else as a node of the graph."""
        apply = partial(target, **options)
        if not any(self._is_computed(value) for value in values_in(args)):
            return self._fold(apply, args)
        samples = tuple(
            self._attempt(apply, [fill(arg, index, meta=True) for arg in args]) for index in range(len(self.batches))
        )
        for sample, batch in zip(samples, self.batches, strict=True):
            if sample.numel() > MAX_VALUES_PER_IMAGE * batch:
                raise OnnxTooComplexError(
                    f"{self.where} has a result of shape {tuple(sample.shape)}; simplify the graph"
                )
        node = self.graph.call_function(target, tuple(self._emit(arg) for arg in args), options)
        node.meta["shape"] = tuple(samples[0].shape)
        return Value(samples, node)

    def weight(self, value: Value, *, transposed: bool = False, flat: bool = False) -> Value:
        """The value as a layer's own: linked to the file where it is one of its tensors, transposed or flattened."""
        if value.weight is None:
            value = self.call(aten.permute.default, value, [1, 0]) if transposed else value
            return self.call(aten.reshape.default, value, [-1]) if flat else value
        layout: Layout = "transposed" if value.transposed != transposed else AS_IN_FILE
        node = self._weight_node(value.weight, "flat" if flat else layout)
        sample = value.samples[0].t() if transposed else value.samples[0]
        sample = (sample.reshape(-1) if flat else sample).to("meta")
        return Value((sample,) * len(self.batches), node)

    def statistics(self, value: Value, name: str) -> Value:
        """A running mean or variance of a batch norm, as a buffer of this very name."""
        if value.weight is None:
            return value
        if name not in self._attributes:
            _register(self.root, name, value.samples[0], trained=False)
            self._attributes[name] = self._get(name)
            if value.weight not in self._of_weight and self._files[value.weight].start is not None:
                self._of_weight[value.weight] = Origin(name)
                self.origins[name] = Origin(value.weight)
        return Value(tuple(sample.to("meta") for sample in value.samples), self._attributes[name])

    def norm_name(self, wanted: str, scale: Value, shift: Value) -> str:
        """A prefix for the tensors of one batch norm; scale and shift get it too, unless they are named already."""
        prefix = self._names.norm(wanted)
        for leaf, value in (("weight", scale), ("bias", shift)):
            if value.weight is not None and value.weight not in self._of_weight:
                self._names.assign(value.weight, f"{prefix}.{leaf}")
        return prefix

    def refusal(self, what: str) -> OnnxOperatorError:
        """An error about the node that is being built."""
        return OnnxOperatorError(f"{self.where} {what}; export the network with other settings, or simplify the graph")

    def _is_computed(self, value: Value) -> bool:
        # Operators on a weight are kept in the graph, so that they are computed again when the weight has changed.
        return value.node is not None or (value.weight is not None and value.samples[0].numel() > 1)

    def _fold(self, target: Callable[..., Any], args: tuple[Any, ...]) -> Value:
        results = []
        for index in range(len(self.batches)):
            # An operator that makes its result from numbers alone has to be told that nothing is to be allocated yet.
            measured = target if any(True for _ in values_in(args)) else partial(target, device="meta")
            count = self._attempt(measured, [fill(arg, index, meta=True) for arg in args]).numel()
            self._known_values += count
            if self._known_values > MAX_KNOWN_VALUES:
                raise OnnxTooComplexError(f"{self.where} makes too large a constant; simplify the graph")
            results.append(self._attempt(target, [fill(arg, index, meta=False) for arg in args]))
        return Value(tuple(results))

    def _attempt(self, target: Callable[..., Any], args: list[Any]) -> Tensor:
        try:
            with torch.no_grad():
                result = target(*args)
        except _CALL_ERRORS as error:
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            raise self.refusal(f"does not fit its inputs ({reason})") from error
        assert isinstance(result, Tensor)
        return result

    # Nodes of arguments -----------------------------------------------------------------------------------------------

    def _emit(self, arg: Any) -> Any:  # noqa: ANN401 - as `call`
        if isinstance(arg, Value):
            return self._node_of(arg)
        if isinstance(arg, Extent):
            return self._node_of_extent(arg)
        if isinstance(arg, list | tuple):
            return [self._emit(item) for item in arg]
        return arg

    def _node_of(self, value: Value) -> fx.Node:
        if value.node is not None:
            return value.node
        if value.weight is not None:
            return self._weight_node(value.weight, "transposed" if value.transposed else AS_IN_FILE)
        if not self.is_same(value):
            return self._filled(value)
        tensor = value.samples[0]
        if id(tensor) not in self._constants:
            name = self._names.constant()
            _register(self.root, name, tensor, trained=False)
            self._constants[id(tensor)] = (self._get(name), tensor)
        return self._constants[id(tensor)][0]

    def _filled(self, value: Value) -> fx.Node:
        """A tensor whose shape depends on the batch: of one number, or the same for each image."""
        size, first = self.shape(value), value.samples[0]
        number = first.reshape(-1)[:1]
        if number.numel() and all(bool((sample == number).all()) for sample in value.samples):
            numbers = (self._emit(size), number.item())
            return self.graph.call_function(aten.full.default, numbers, {"dtype": first.dtype})
        # Else the same for each image, as position embeddings are, repeated along the one axis that varies.
        axes = [axis for axis, extent in enumerate(size) if isinstance(extent, Extent)]
        part = first.narrow(axes[0], 0, 1) if len(axes) == 1 and first.numel() else None
        if part is None or not all(torch.equal(sample, part.expand_as(sample)) for sample in value.samples):
            raise self.refusal("needs a constant that depends on the batch size")
        single = self._node_of(self.known(part.clone()))
        return self.graph.call_function(aten.expand.default, (single, self._emit(size)))

    def _node_of_extent(self, extent: Extent) -> fx.Node:
        factors = {value / batch for value, batch in zip(extent.values, self.batches, strict=True)}
        factor = factors.pop()
        if factors or factor != int(factor):
            raise self.refusal("has an extent that is no multiple of the batch size")
        assert self._images is not None
        batch: fx.Node = self.graph.call_function(aten.sym_size.int, (self._images, 0))
        return batch if factor == 1 else self.graph.call_function(operator.mul, (batch, int(factor)))

    def _get(self, name: str) -> fx.Node:
        owner, _, leaf = name.rpartition(".")
        node = self.graph.get_attr(name)
        node.meta["shape"] = tuple(getattr(self.root.get_submodule(owner), leaf).shape)
        return node

    def _weight_node(self, file_name: str, layout: Layout) -> fx.Node:
        if file_name not in self._of_weight:
            name = self._names.state(file_name)
            # A tensor that cannot be written back must not be trained either; reading it through another node keeps
            # it from being taken for a layer's own.
            can_change = self._files[file_name].start is not None
            _register(self.root, name, held(self._files[file_name].tensor, layout).float(), trained=can_change)
            node = self._get(name)
            self._attributes[name] = node if can_change else self.graph.call_function(aten.alias.default, (node,))
            self._of_weight[file_name] = Origin(name, layout)
            if can_change:
                self.origins[name] = Origin(file_name, layout)
        state = self._of_weight[file_name]
        node = self._attributes[state.name]
        if state.layout == layout:
            return node
        if state.layout == "transposed":
            node = self.graph.call_function(aten.permute.default, (node, [1, 0]))
        elif state.layout == "flat":
            node = self.graph.call_function(aten.reshape.default, (node, list(self._files[file_name].tensor.shape)))
        if layout == "transposed":
            return self.graph.call_function(aten.permute.default, (node, [1, 0]))
        return self.graph.call_function(aten.reshape.default, (node, [-1])) if layout == "flat" else node


def _register(root: nn.Module, name: str, tensor: Tensor, *, trained: bool) -> None:
    *path, leaf = name.split(".")
    owner = root
    for part in path:
        if not hasattr(owner, part):
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    copy = tensor.detach().clone(memory_format=torch.contiguous_format)
    if trained:
        owner.register_parameter(leaf, nn.Parameter(copy))
    else:
        owner.register_buffer(leaf, copy)
