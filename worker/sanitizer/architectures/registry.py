"""The allow-list of architectures, and the one way to build one of them from a specification."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from worker.sanitizer.architectures import external, residual, timm_names, vgg
from worker.sanitizer.architectures.options import (
    BoolOption,
    ChoiceOption,
    IntOption,
    InvalidArchitectureOptionError,
    Option,
    OptionValue,
    UnknownArchitectureError,
    resolve,
)
from worker.sanitizer.spec import ArchitectureSpec

# Eight GB in float32: above what this service repairs, below what could exhaust a worker unnoticed.
MAX_PARAMETERS = 2_000_000_000
_WIDTH = IntOption(default=16, minimum=1, maximum=1024)


@dataclass(frozen=True, slots=True)
class _Entry:
    """`build(num_classes, in_channels, **options)`, and the options that it understands."""

    build: Callable[..., torch.nn.Module]
    options: Mapping[str, Option] = field(default_factory=dict)


def _sized(default: int) -> dict[str, Option]:
    """Of networks that are built for one size of image: square, in pixels."""
    return {"image_size": IntOption(default=default, minimum=16, maximum=1024)}


# What torchvision takes unless it is told otherwise.
_AUXILIARY = {"aux_logits": BoolOption(default=True)}
# More names than these are not written into one message.
_MAX_NAMED = 60
_BUILTIN: dict[str, _Entry] = {
    "preact_resnet18": _Entry(residual.preact_resnet18),
    "resnet18_32": _Entry(residual.resnet18_32),
    "small_resnet": _Entry(
        residual.small_resnet,
        {
            "width": _WIDTH,
            "blocks": IntOption(default=1, minimum=1, maximum=2),
            "stem_stride": IntOption(default=1, minimum=1, maximum=2),
        },
    ),
    "small_vgg": _Entry(vgg.small_vgg, {"width": _WIDTH, "batch_norm": BoolOption(default=True)}),
    "vgg19_bn_32": _Entry(
        vgg.vgg19_bn_32, {"classifier": ChoiceOption(default="linear", choices=("linear", "three_layer"))}
    ),
}
_REGISTRY: dict[str, dict[str, _Entry]] = {
    "builtin": _BUILTIN,
    "torchvision": {
        name: _Entry(
            external.torchvision_builder(name),
            (_sized(224) if name in external.TORCHVISION_SIZES else {})
            | (_AUXILIARY if name in external.TORCHVISION_AUXILIARY else {}),
        )
        for name in external.TORCHVISION_STEMS
    },
    "timm": {
        name: _Entry(external.timm_builder(name), _sized(timm_names.SIZES[name]) if name in timm_names.SIZES else {})
        for name in timm_names.NAMES
    },
}


def build(spec: ArchitectureSpec) -> torch.nn.Module:
    """Return the specified network with random parameters, on the CPU, in evaluation mode.

    The network is first built without storage and counted, so that a hostile specification costs no memory.

    Raises:
        UnknownArchitectureError: the source or the name is not in the allow-list.
        ArchitectureNotInstalledError: the library behind the source cannot be imported.
        InvalidArchitectureOptionError: an option is not allowed, or the network passes MAX_PARAMETERS.
    """
    entry = _find(spec)
    options = resolve(spec.name, entry.options, spec.options)
    with torch.device("meta"):
        num_parameters = _num_values(_construct(entry, spec, options))
    if num_parameters > MAX_PARAMETERS:
        raise InvalidArchitectureOptionError(
            f"architecture '{spec.name}' would have {num_parameters} parameters with these options and this number "
            f"of classes; at most {MAX_PARAMETERS} are allowed"
        )
    with torch.device("cpu"):
        return _construct(entry, spec, options).eval()


def state_shapes(spec: ArchitectureSpec) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of the specified network's state dict, without making any of them.

    Raises:
        ArchitectureRefusedError: as `build`, but for size.
    """
    entry = _find(spec)
    with torch.device("meta"):
        network = _construct(entry, spec, resolve(spec.name, entry.options, spec.options))
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def names() -> dict[str, list[str]]:
    """Return the allow-listed names by source, whether or not the library behind a source is installed."""
    return {source: sorted(entries) for source, entries in _REGISTRY.items()}


def _find(spec: ArchitectureSpec) -> _Entry:
    entries = _REGISTRY.get(spec.source)
    if entries is None:
        raise UnknownArchitectureError(f"architecture.source must be one of: {', '.join(sorted(_REGISTRY))}")
    entry = entries.get(spec.name)
    if entry is None:
        known = sorted(entries)
        if len(known) > _MAX_NAMED:
            near = difflib.get_close_matches(spec.name[:60], known, n=5, cutoff=0)
            known = [*near, "another of docs/architectures.md"]
        raise UnknownArchitectureError(
            f"'{spec.source}' has no architecture '{spec.name[:60]}' here; choose one of: {', '.join(known)}"
            "; or make a .pt2 of your model with `lustrate export` (docs/state-dict.md)"
        )
    return entry


def _construct(entry: _Entry, spec: ArchitectureSpec, options: Mapping[str, OptionValue]) -> torch.nn.Module:
    try:
        return entry.build(num_classes=spec.num_classes, in_channels=spec.in_channels, **options)
    except (ValueError, AssertionError) as error:
        if "image_size" not in options:
            raise
        # Windows and patches have to divide it, each library in its own way.
        raise InvalidArchitectureOptionError(
            f"architecture '{spec.name}' cannot be built for images of {options['image_size']} pixels; choose the "
            "image_size that it was trained with, such as 224"
        ) from error


def _num_values(network: torch.nn.Module) -> int:
    return sum(math.prod(tensor.shape) for tensor in [*network.parameters(), *network.buffers()])
