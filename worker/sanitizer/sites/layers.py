"""The channels of convolutions, of linear layers that an activation follows, and of norms on a residual stream."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from worker.sanitizer.sites import dataflow, operators, standardised
from worker.sanitizer.sites.operators import HEAD_TAIL, Layer, Norm, aten
from worker.sanitizer.sites.site import Rows, Site

GATE = "a gate: the function behind it turns silence into another value than zero"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a layer's channels are looked at.

    Attributes:
        norm: The norm right behind the layer, None without one.
        is_mixed: Whether a norm over more than the layer's channels follows instead.
        tap: Behind the norm and the activation.
        axis: The channels' axis there.
        is_activated: Whether an activation lies before the tap.
        at_zero: What the activation makes of zero.
    """

    norm: Norm | None
    is_mixed: bool
    tap: fx.Node
    axis: int
    is_activated: bool
    at_zero: float


@dataclass(frozen=True, slots=True)
class Skipped:
    """A layer that has no channels to silence, and why."""

    name: str
    reason: str


def of_layer(layer: Layer) -> tuple[Site | Skipped, Norm | None]:
    """A layer's site, or why it has none; and the norm that goes with it."""
    place = _place(layer)
    reason = _why_not(layer, place)
    name = layer_name(layer, place.norm)
    if reason is not None:
        return Skipped(name, reason), place.norm
    owned, scale = _owned(layer, place.norm)
    norm = place.norm if place.norm is not None and place.norm.kind == "batch" and layer.kind == "conv" else None
    is_data_free = layer.kind == "conv" and (place.norm is None or norm is not None)
    site = Site(
        name=name,
        kind=layer.kind,
        num_channels=_num_channels(layer.end, layer.axis),
        tap=place.tap.name,
        owned=owned,
        scale=scale,
        norm=None if norm is None else _prefix(norm),
        weight=operators.parameter(layer.weight) if is_data_free else None,
        norm_input=None if norm is None else layer.end.name,
        norm_eps=0.0 if norm is None else norm.eps,
        axis=place.axis,
        parts=parts(place.tap),
        is_patch_embedding=_is_patch_embedding(layer),
        feeds_gate=_feeds_gate(place.tap),
    )
    return site, place.norm


def of_norm(norm: Norm) -> Site | Skipped:
    """The site of a norm that no single layer feeds, or why it has none."""
    name = _prefix(norm)
    affine = _affine(norm)
    if norm.kind == "layer":
        return Skipped(name, "a layer norm on values that several layers have written")
    if len(operators.shape(norm.end) or ()) != 4:
        return Skipped(name, "a norm on something else than activation maps")
    if not affine:
        return Skipped(name, "a norm without scale and shift")
    settled = dataflow.settle(norm.end)
    if settled.at_zero:
        return Skipped(name, GATE)
    is_batch = norm.kind == "batch"
    return Site(
        name=name,
        kind="norm",
        num_channels=_num_channels(norm.end, 1),
        tap=settled.node.name,
        owned=affine,
        scale=affine,
        norm=name if is_batch else None,
        norm_input=norm.node.all_input_nodes[0].name if is_batch else None,
        norm_eps=norm.eps,
        parts=parts(norm.end),
    )


def layer_name(layer: Layer, norm: Norm | None = None) -> str:
    """The state-dict path of a layer, as well as it can be told from its tensors."""
    stored = operators.parameter(layer.weight)
    if stored is None and norm is not None:
        return _prefix(norm)
    if stored is None:
        source = next((one for one in _sources(layer.weight) if len(operators.shape(one) or ()) > 1), None)
        stored = operators.parameter(source)
    return (stored or layer.node.name).removesuffix(".weight")


def parts(tap: fx.Node) -> int:
    """Into how many parts an image is cut along the first axis of the node's value; 0 where that is not the images."""
    images = next(node for node in tap.graph.nodes if node.op == "placeholder").meta["val"].shape[0]
    rows = tap.meta["val"].shape[0]
    num_images, num_rows = operators.size(images), operators.size(rows)
    if not isinstance(images, int) and isinstance(rows, int):
        return 0
    if num_images is None or num_rows is None or num_rows % num_images:
        return 0
    return num_rows // num_images


def _place(layer: Layer) -> Place:
    found, is_mixed, start, axis = None, False, layer.end, layer.axis
    for node, here in dataflow.ahead(layer.end, layer.axis):
        norm = operators.norm(operators.only_reader(node))
        if norm is not None and norm.node.args[0] is node:
            is_mixed = norm.axis != here
            if not is_mixed:
                found, start, axis = norm, norm.end, here
            break
    for node, here in dataflow.ahead(start, axis):
        settled = dataflow.settle(node)
        if settled.node is not node:
            return Place(found, is_mixed, settled.node, here, settled.is_activated, settled.at_zero)
    return Place(found, is_mixed, start, axis, is_activated=False, at_zero=0.0)


def _why_not(layer: Layer, place: Place) -> str | None:
    norm = place.norm
    is_conv = layer.kind == "conv"
    reasons = {
        "transposed convolution": is_conv and layer.node.target is aten.convolution.default and layer.node.args[6],
        "not a two-dimensional convolution": is_conv and len(operators.shape(layer.node) or ()) != 4,
        "it is the classifier itself": _leads_to_output(layer.end),
        "no activation follows it, its channels are sums on their way to other layers": (
            not is_conv and not place.is_activated
        ),
        GATE: place.at_zero,
        "the norm behind it runs over more than its channels": place.is_mixed,
        "its values do not have the images in their first axis": not parts(place.tap),
        "the norm behind it has a scale or shift that is computed, not stored": (
            norm is not None and (_is_computed(norm.scale) or _is_computed(norm.shift))
        ),
        "the norm behind it mixes its channels and has no scale to silence them with": (
            norm is not None and norm.kind != "batch" and norm.scale is None
        ),
    }
    first = next((reason for reason, holds in reasons.items() if holds), None)
    return first or _why_not_stored(layer, norm)


def _why_not_stored(layer: Layer, norm: Norm | None) -> str | None:
    if norm is not None and _affine(norm):
        return None
    if operators.parameter(layer.weight) is None and (norm is not None or standardised.source(layer) is None):
        return "its weight is computed, not stored"
    return "its bias is computed, not stored" if _is_computed(layer.bias) else None


def _owned(layer: Layer, norm: Norm | None) -> tuple[tuple[Rows, ...], tuple[Rows, ...]]:
    """What a channel owns, and what of it a soft mask multiplies."""
    affine = () if norm is None else _affine(norm)
    if norm is not None and norm.kind != "batch":
        # Zeroing the layer as well would change the statistics that the other channels are normed by.
        return affine, affine
    weight = operators.parameter(layer.weight)
    source = standardised.source(layer) if weight is None and norm is None else None
    own = [] if weight is None else [Rows(weight, layer.weight_axis)]
    own += [] if source is None else [source]
    own += _stored(layer.bias)
    # Without a scale of its own the norm turns a zero into -mean/std, unless its running mean is zeroed too.
    own_mean = [] if norm is None or affine else _stored(norm.mean)
    return (*own, *affine, *own_mean), affine or (*own, *own_mean)


def _affine(norm: Norm) -> tuple[Rows, ...]:
    return (*_stored(norm.scale), *_stored(norm.shift))


def _stored(node: fx.Node | None) -> list[Rows]:
    name = operators.parameter(node)
    return [] if name is None else [Rows(name)]


def _is_computed(node: fx.Node | None) -> bool:
    return node is not None and node.op != "get_attr"


def _prefix(norm: Norm) -> str:
    stored = operators.parameter(norm.mean) or operators.parameter(norm.scale) or operators.parameter(norm.shift)
    return (stored or norm.node.name).rpartition(".")[0] or norm.node.name


def _leads_to_output(node: fx.Node) -> bool:
    """Whether nothing but pooling and reshaping lies between the node and the logits."""
    while True:
        user = operators.only_reader(node)
        if user is None:
            return False
        if user.op == "output":
            return True
        if user.target not in HEAD_TAIL and user.target not in operators.ACTIVATIONS:
            return False
        node = user


def _is_patch_embedding(layer: Layer) -> bool:
    kernel = (operators.shape(layer.weight) or ())[2:]
    strides = layer.node.args[3] if layer.kind == "conv" and len(layer.node.args) > 3 else None
    return isinstance(strides, (list, tuple)) and max(kernel, default=1) > 1 and tuple(strides) == kernel


def _feeds_gate(tap: fx.Node) -> bool:
    reader = operators.only_reader(tap)
    behind = None if reader is None else operators.layer(reader)
    return behind is not None and _place(behind).at_zero != 0


def _num_channels(node: fx.Node, axis: int) -> int:
    shape = operators.shape(node)
    assert shape is not None
    return shape[axis]


def _sources(node: fx.Node) -> list[fx.Node]:
    """The stored tensors that a value is computed from, the nearest first."""
    waiting, seen = [node], []
    while waiting:
        one = waiting.pop(0)
        if one.op == "get_attr":
            seen.append(one)
        elif len(seen) + len(waiting) < 64:
            waiting.extend(one.all_input_nodes)
    return seen
