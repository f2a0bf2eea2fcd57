"""Which architecture of the registry a module is: one with its tensors' names and shapes, and with its answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from worker.sanitizer.architectures import ArchitectureRefusedError, OptionValue, build, names, state_shapes
from worker.sanitizer.errors import SanitizerError
from worker.sanitizer.spec import MAX_CHANNELS, ArchitectureSpec

_VARIANTS: dict[str, list[dict[str, OptionValue]]] = {
    "small_resnet": [{"blocks": blocks, "stem_stride": stride} for blocks in (1, 2) for stride in (1, 2)],
    "small_vgg": [{"batch_norm": True}, {"batch_norm": False}],
    "vgg19_bn_32": [{"classifier": "linear"}, {"classifier": "three_layer"}],
}
_HAS_WIDTH = ("small_resnet", "small_vgg")


class NotRegisteredError(SanitizerError):
    """No registered architecture has these tensors and these answers."""

    code = "not_registered"


def find(module: nn.Module, images_NCHW: Tensor, logits_NK: Tensor, tolerance: float) -> ArchitectureSpec:
    """The registered architecture that gives these logits with this module's tensors.

    Raises:
        NotRegisteredError: there is none.
    """
    state = module.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for spec in _candidates(state, logits_NK.shape[1], images_NCHW.shape[1]):
        try:
            if state_shapes(spec) != shapes:
                continue
            built = build(spec)
        except ArchitectureRefusedError:
            continue
        built.load_state_dict(state)
        with torch.inference_mode():
            found_NK = built(images_NCHW)
        if (found_NK - logits_NK).abs().amax() <= tolerance * logits_NK.abs().amax().clamp(min=1):
            return spec
    raise NotRegisteredError(
        "the module is none of the registered architectures (of those whose libraries are installed here); "
        "name it with --architecture if you know better, or export to .pt2, which needs none"
    )


def save(module: nn.Module, path: Path) -> None:
    """Write the state dict as safetensors. Tied tensors are written under each of their names."""
    state = module.state_dict()
    safetensors.torch.save_file({name: tensor.detach().clone().contiguous() for name, tensor in state.items()}, path)


def _candidates(state: dict[str, Tensor], num_classes: int, in_channels: int) -> Iterator[ArchitectureSpec]:
    if not 1 <= in_channels <= MAX_CHANNELS or not state:
        return
    width = len(next(iter(state.values()))) if next(iter(state.values())).dim() else 0
    for source, allowed in names().items():
        for name in allowed:
            for options in _VARIANTS.get(name, [{}]):
                widths = {"width": width} if name in _HAS_WIDTH else {}
                yield ArchitectureSpec(
                    source=source,  # type: ignore[arg-type]
                    name=name,
                    num_classes=num_classes,
                    in_channels=in_channels,
                    options={**options, **widths},
                )
