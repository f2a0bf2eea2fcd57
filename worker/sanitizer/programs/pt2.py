"""Exported programs (`.pt2` of torch.export.save), read and written without torch's loader, which trusts its input.

Only the directory, the JSON and the raw tensors are read. Sample inputs, which are a pickle, are never opened and come
back as zeros of our own.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from worker.sanitizer.programs import pt2_archive as archive
from worker.sanitizer.programs import pt2_caps, pt2_graph
from worker.sanitizer.programs import pt2_document as documents
from worker.sanitizer.programs.learning import let_learn
from worker.sanitizer.programs.program import Program, hold
from worker.sanitizer.programs.pt2_archive import Pt2File
from worker.sanitizer.refusals import CorruptProgramError

# Of any zip that may be a checkpoint: a state dict has at most half as many.
MAX_MEMBERS = archive.MAX_MEMBERS
# What stands in the sample inputs for a size that is free.
_FREE_BATCH, _FREE_SIDE = 2, 32


@dataclass(frozen=True, slots=True)
class ExportedProgram:
    """A `.pt2` file that passed every check.

    Attributes:
        file: Its members.
        tensors: The weights by their state-dict names, in the file's order and dtypes; constants are not among them.
        program: The graph, with float32 copies of weights and constants.
        sample_inputs: What the download holds in place of the foreign pickle.
    """

    file: Pt2File
    tensors: dict[str, Tensor]
    program: Program
    sample_inputs: bytes


def looks_like(names: list[str]) -> bool:
    """Whether a zip with these members is, or wants to be, an exported program."""
    below_root = [name.partition("/")[2] for name in names]
    return any(name.startswith(("models/", "archive_format", "data/aotinductor/")) for name in below_root) or any(
        name.endswith(("serialized_exported_program.json", "serialized_state_dict.pt")) for name in names
    )


def read(path: Path) -> ExportedProgram:
    """Read an exported program.

    Raises:
        CheckpointRefusedError: its code names the rule.
    """
    file = archive.read(path)
    name = f"models/{file.model}.json"
    document = documents.parse(file.bytes_of(name), name)
    documents.check(document)
    payloads = {**file.weights, **file.constants}
    parameters = {payload.name for payload in payloads.values() if payload.is_parameter}
    tensors = {payload.name: payload.tensor for payload in payloads.values()}
    graph, images = pt2_graph.build(document, hold(tensors, parameters), tensors)
    let_learn(graph, file.weights.keys())
    sizes = pt2_graph.input_sizes(document, images)
    return ExportedProgram(
        file=file,
        tensors={payload.name: payload.tensor for payload in file.weights.values()},
        program=Program(graph=graph, batch_size=sizes[0]),
        sample_inputs=_sample_inputs(document, sizes),
    )


def write(file: BinaryIO, source: ExportedProgram, changed: Mapping[str, Tensor], caps: Mapping[str, Tensor]) -> None:
    """Write the archive again around changed weights.

    `caps` are bounds of activations by the names of their values, for which calls and constants are added.

    Raises:
        TiedTensorsDisagreeError: two names share memory but were given different values.
    """
    others = pt2_caps.members(source.file, caps) if caps else {}
    archive.write(
        file, source.file, changed, {f"data/sample_inputs/{source.file.model}.pt": source.sample_inputs, **others}
    )


def _sample_inputs(document: documents.Document, sizes: tuple[int | None, ...]) -> bytes:
    """Zeros in the places where the program takes its inputs, as torch.save writes them."""
    free = (_FREE_BATCH, 3, _FREE_SIDE, _FREE_SIDE)
    zeros = torch.zeros([size or default for size, default in zip(sizes, free, strict=True)])
    calls = documents.items(document["graph_module"].get("module_call_graph"), "module_call_graph")
    signature = next((call["signature"] for call in calls if call.get("fqn") == "" and call.get("signature")), None)
    if signature is None:
        raise CorruptProgramError("the program does not describe its inputs; export it again")
    structure = documents.tree(signature["in_spec"])
    buffer = io.BytesIO()
    torch.save(_filled(structure, zeros), buffer)
    return buffer.getvalue()


def _filled(structure: documents.Document, leaf: Tensor) -> Any:  # noqa: ANN401 - tuples and dictionaries
    """The tree with the tensor at each leaf."""
    children = [_filled(child, leaf) for child in structure["children_spec"]]
    if structure["type"] is None:
        return leaf
    if structure["type"] == "builtins.tuple":
        return tuple(children)
    if structure["type"] == "builtins.list":
        return children
    keys = json.loads(structure["context"] or "[]")
    return dict(zip(keys, children, strict=False))
