"""The page of architectures, made from the registry: `python -m tests.docs.architecture_page` writes it."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from worker.sanitizer.architectures import names, registry
from worker.sanitizer.architectures.options import BoolOption, ChoiceOption, IntOption, Option

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"

_INTRODUCTION = """# Architectures by name

With weights alone (safetensors or a state dict) goes the name of the network that they belong to:
`"architecture": {"source": "timm", "name": "resnet50", "num_classes": 10, "in_channels": 3, "options": {}}`.
The tensors' names, shapes and kinds must be those that the library gives a network of that name and number of classes.
No library fetches anything: each is asked for a plain name without its own weights. The versions that built a network
stand in the report. Image classifiers of transformers need no name: see
[a Hugging Face repository](hugging-face.md). Any other network is exported first: see [a state dict](state-dict.md).

A network with the option `image_size` (square, in pixels) is built for images of one size; the number in brackets is
the one that it has unless another is asked for. Patches and windows have to divide it.

This page is generated from the registry by `python -m tests.docs.architecture_page`; a test compares the two.
"""
_HEADINGS = {
    "builtin": "Without any library: networks of the field, for small images",
    "torchvision": "torchvision (`pip install 'lustrate[torchvision]'`)",
    "timm": "timm (`pip install 'lustrate[timm]'`)",
}


def page() -> str:
    """The page as it must be."""
    found = _INTRODUCTION
    for source, listed in names().items():
        found += f"\n## {_HEADINGS[source]}\n\n{len(listed)} names.\n\n"
        for _, family in itertools.groupby(listed, key=_family):
            found += f"- {', '.join(_described(source, name) for name in family)}\n"
    return found


def _family(name: str) -> str:
    match = re.match(r"[a-z]+", name)
    assert match is not None, name
    return match[0]


def _described(source: str, name: str) -> str:
    options = registry._REGISTRY[source][name].options
    stated = [_stated(key, option) for key, option in options.items()]
    return f"`{name}` ({'; '.join(stated)})" if stated else f"`{name}`"


def _stated(name: str, option: Option) -> str:
    if name == "image_size":
        return str(option.default)
    if isinstance(option, IntOption):
        return f"`{name}` {option.minimum} to {option.maximum}, else {option.default}"
    if isinstance(option, BoolOption):
        return f"`{name}`, else {str(option.default).lower()}"
    assert isinstance(option, ChoiceOption)
    return f"`{name}` {' or '.join(option.choices)}, else {option.default}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
