"""A classifier's graph as a file carried it, on our own terms: allow-listed operators on tensors with plain names."""

from __future__ import annotations

import keyword
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from worker.sanitizer.refusals import ProgramTensorNameError

MAX_NAME_CHARACTERS = 500
MAX_NAME_PARTS = 60

# fx writes Python source around these names and does not escape them, so that a quotation mark would be code.
_PART = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Program:
    """A graph that `network.from_graph` takes.

    Attributes:
        graph: One placeholder, the normalised images (N, C, H, W); one output, the logits (N, K); between them calls
            of allow-listed aten overloads with their arguments in schema order, and get_attr nodes that name float32
            parameters and buffers. The names are those of the checkpoint's tensors, the memory is its own.
        batch_size: N where the graph was made for one batch size only, None where N is free.
    """

    graph: fx.GraphModule
    batch_size: int | None


def hold(tensors: Mapping[str, Tensor], parameters: Collection[str]) -> nn.Module:
    """A bare module that holds copies of these tensors under these dotted names, ready to be an fx root.

    Floating-point tensors become float32. Those among `parameters` become parameters, so that gradient descent may
    change them; the others (a batch norm's statistics, tables of positions) and all integers become buffers. One
    tensor object under two names stays one.

    Raises:
        ProgramTensorNameError: a name cannot be that of a module's tensor.
    """
    root = nn.Module()
    reserved = set(dir(fx.GraphModule(nn.Module(), fx.Graph())))
    made: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        *path, leaf = _parts(name)
        owner = root
        if (path or [leaf])[0] in reserved:
            raise _refusal(name)
        for part in path:
            if part not in owner._modules:  # noqa: SLF001 - get_submodule has no way to ask
                if hasattr(owner, part):
                    raise _refusal(name)
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        if hasattr(owner, leaf):
            raise _refusal(name)
        if id(tensor) not in made:
            made[id(tensor)] = _copy(tensor, learns=name in parameters)
        held = made[id(tensor)]
        if isinstance(held, nn.Parameter):
            owner.register_parameter(leaf, held)
        else:
            owner.register_buffer(leaf, held)
    return root


def _copy(tensor: Tensor, *, learns: bool) -> Tensor:
    copy = tensor.detach().clone(memory_format=torch.contiguous_format)
    if not tensor.is_floating_point():
        return copy
    return nn.Parameter(copy.float()) if learns else copy.float()


def _parts(name: str) -> list[str]:
    parts = name.split(".")
    if len(name) > MAX_NAME_CHARACTERS or len(parts) > MAX_NAME_PARTS:
        raise _refusal(name)
    if any(keyword.iskeyword(part) or not _PART.fullmatch(part) for part in parts):
        raise _refusal(name)
    return parts


def _refusal(name: str) -> ProgramTensorNameError:
    return ProgramTensorNameError(
        f"a tensor of the program is named {name[:80]!r}, which no module's tensor can be; use letters, digits, "
        "hyphens and underscores between dots, no name twice, and none of a module's own attributes"
    )
