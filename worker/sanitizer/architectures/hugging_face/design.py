"""Build a described network with transformers: offline, without its file loader, first as shapes and then in memory."""

from __future__ import annotations

import keyword
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from worker.sanitizer.architectures.external import import_library
from worker.sanitizer.architectures.hugging_face.config import Described
from worker.sanitizer.architectures.options import ArchitectureNotInstalledError
from worker.sanitizer.architectures.registry import MAX_PARAMETERS
from worker.sanitizer.refusals import ConfigMismatchError, InvalidConfigFieldError
from worker.sanitizer.spec import ArchitectureSpec

# Tables of positions that the library works out and no file holds; BEiT-large at 512 pixels has 25 million numbers.
MAX_TABLE_VALUES = 2**27
MAX_NAME_CHARACTERS = 500

# What a library raises on numbers that do not fit each other.
_MISFITS = (
    *(ValueError, TypeError, AssertionError, IndexError, KeyError, AttributeError, RuntimeError, ArithmeticError),
    *(NotImplementedError, MemoryError),
)
# fx writes Python source around these names and does not escape them, so that a quotation mark would be code.
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
# Of the names of a built network's tensors, before those of the state dict.
PREFIX = "model."


class Classifier(nn.Module):
    """A model of transformers that answers with its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Logits (N, K)."""
        logits: Tensor = self.model(pixel_values=images_NCHW).logits
        return logits


@dataclass(frozen=True, slots=True)
class Design:
    """A network whose shapes are known and whose tensors do not exist yet.

    Attributes:
        described: By the configuration.
        shapes: The state dict on the meta device, under the names that the installed transformers gives.
        model: Without storage.
    """

    described: Described
    shapes: dict[str, Tensor]
    model: nn.Module

    def state_names(self, names: Iterable[str]) -> dict[str, str | None]:
        """The state dict's name of each tensor of a file, None for a table that the library makes itself.

        Files keep the names of the release that wrote them; the library's own rules translate. A name that no rule
        knows is its own translation, and is found not to fit.
        """
        mapping = import_library("transformers.conversion_mapping", source="transformers")
        loading = import_library("transformers.core_model_loading", source="transformers")
        rules = mapping.get_model_conversion_mapping(self.model)
        renamings = [rule for rule in rules if isinstance(rule, loading.WeightRenaming)]
        ignored = [re.compile(one) for one in getattr(self.model, "_keys_to_ignore_on_load_unexpected", None) or ()]
        found: dict[str, str | None] = {}
        for name in names:
            found[name] = name
            if _is_plain(name):
                found[name], _ = loading.rename_source_key(
                    name, renamings, [], self.model.base_model_prefix, self.shapes
                )
                if found[name] not in self.shapes and any(pattern.search(name) for pattern in ignored):
                    found[name] = None
        return found

    def build(self, state: Mapping[str, Tensor]) -> nn.Module:
        """The network on the CPU, in evaluation mode, with these tensors; those still without storage keep defaults.

        Its own tensors are named as in the state dict, after PREFIX.
        """
        with torch.device("cpu"):
            model = type(self.model)(_configuration(type(self.model), self.described))
        model.load_state_dict({name: tensor for name, tensor in state.items() if not tensor.is_meta}, strict=False)
        return Classifier(model).eval()


def design(described: Described, spec: ArchitectureSpec) -> Design:
    """The shapes of a described network, which must be the one that was declared.

    Raises:
        ArchitectureNotInstalledError: transformers cannot be imported, or is too old for this model.
        CheckpointRefusedError: config_mismatch, invalid_config_field.
    """
    _require_agreement(described, spec)
    # Nothing here opens a connection; should a release begin to, this makes it an error.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    kind = described.model_type
    module = described.family.module or f"{kind}.modeling_{kind}"
    library = import_library(f"transformers.models.{module}", source="transformers")
    model_class = getattr(library, described.class_name, None)
    if model_class is None:
        raise ArchitectureNotInstalledError(
            f"the transformers on this worker has no {described.class_name}; upgrade it, or export the model to .pt2"
        )
    try:
        with torch.device("meta"):
            model = model_class(_configuration(model_class, described))
    except _MISFITS as error:
        raise InvalidConfigFieldError(
            f"transformers cannot build {described.class_name} from the fields of config.json, which do not fit each "
            "other; upload the configuration that the model was saved with"
        ) from error
    shapes = dict(model.state_dict())
    _refuse_large(model, shapes)
    return Design(described=described, shapes=shapes, model=model)


def _require_agreement(described: Described, spec: ArchitectureSpec) -> None:
    declared: dict[str, object] = {"num_classes": spec.num_classes, "in_channels": spec.in_channels}
    found: dict[str, object] = {"num_classes": described.num_classes, "in_channels": described.in_channels}
    if spec.name:
        declared, found = {"name": spec.name, **declared}, {"name": described.model_type, **found}
    for field, value in declared.items():
        if value != found[field]:
            raise ConfigMismatchError(
                f"architecture.{field} is {value!r}, but config.json says {found[field]!r}; declare what it says"
            )


def _configuration(model_class: Any, described: Described) -> Any:  # noqa: ANN401 - classes of an optional library
    config = model_class.config_class(num_labels=described.num_classes, **described.fields)
    # Of its ways to compute attention, the one that is written out in plain operators.
    config._attn_implementation = "eager"  # noqa: SLF001 - the library's documented name for it
    for name, value in described.derived.items():
        found = getattr(config, name, None)
        if _plain(found) != _without_mark(value):
            raise InvalidConfigFieldError(f"{name!r} of config.json must be {found!r}, by its other fields")
    return config


def _without_mark(value: object) -> object:
    # LeViT's network marks the end of a list in its own configuration, and a model that was built is saved with it.
    return [item for item in value if item != [""]] if isinstance(value, list) else value


def _plain(value: object) -> object:
    """As JSON would give it."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _refuse_large(model: nn.Module, shapes: Mapping[str, Tensor]) -> None:
    count = sum(math.prod(tensor.shape) for tensor in shapes.values())
    if count > MAX_PARAMETERS:
        raise InvalidConfigFieldError(
            f"the network of config.json would have {count} parameters; at most {MAX_PARAMETERS} are allowed"
        )
    tables = sum(math.prod(tensor.shape) for name, tensor in model.named_buffers() if name not in shapes)
    if tables > MAX_TABLE_VALUES:
        raise InvalidConfigFieldError(
            f"the network of config.json would need tables of {tables} positions; at most {MAX_TABLE_VALUES} are made"
        )


def _is_plain(name: str) -> bool:
    parts = name.split(".")
    return (
        len(name) <= MAX_NAME_CHARACTERS
        and _NAME.fullmatch(name) is not None
        and not any(keyword.iskeyword(part) for part in parts)
        and parts[0] not in _RESERVED
    )


# Attributes of a graph, which no tensor's path may begin with.
_RESERVED = frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph())))
