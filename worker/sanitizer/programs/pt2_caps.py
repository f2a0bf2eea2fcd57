"""Bounds of activations, put into an exported program as constants and calls of aten::minimum.

The call that made a value makes it under another name, and the minimum of it and the bound bears the old one: whoever
read the value reads the bounded one. No weight is added, so the state dict has the keys that it had.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from worker.sanitizer.programs import pt2_document as documents
from worker.sanitizer.programs.naming import fresh
from worker.sanitizer.programs.pt2_archive import Pt2File
from worker.sanitizer.programs.pt2_document import Document
from worker.sanitizer.programs.pt2_tensors import FLOAT32, STRIDED

_POSITIONAL = 1


def members(file: Pt2File, caps: Mapping[str, Tensor]) -> dict[str, bytes]:
    """The members of the archive that these bounds change or add, by their names below the root.

    Args:
        file: An archive whose document `pt2_document.check` accepted.
        caps: By the name of a value that a call makes, what it is bounded by: float32, and broadcast over it.
    """
    program_name, config_name = f"models/{file.model}.json", f"data/constants/{file.model}_constants_config.json"
    program = documents.parse(file.bytes_of(program_name), program_name)
    config = documents.parse(file.bytes_of(config_name), config_name)
    graph, signature = program["graph_module"]["graph"], program["graph_module"]["signature"]
    values, stored = graph["tensor_values"], config["config"]
    inputs = {name for spec in graph["inputs"] for name in _names(spec)}
    taken = {*values, *inputs, *file.weights, *stored, *file.members}
    first_image = next(row for row, spec in enumerate(signature["input_specs"]) if "user_input" in spec)
    added: dict[str, bytes] = {}
    nodes = []
    for node in graph["nodes"]:
        nodes.append(node)
        for value in [name for name in _names(node["outputs"]) if name in caps]:
            before, cap = fresh(f"{value}_uncapped", taken), fresh(f"lustrate_cap_{len(added)}", taken)
            held, member = fresh(f"c_{cap}", taken), fresh(f"data/constants/tensor_{len(stored)}", taken)
            bound = caps[value].detach().cpu().to(torch.float32).contiguous()
            _rename(node["outputs"], value, before)
            if node.get("name") == value:
                node["name"] = before
            nodes.append(_minimum(before, held, value))
            values[before], values[held] = copy.deepcopy(values[value]), _described(bound)
            graph["inputs"].insert(first_image, {"as_tensor": {"name": held}})
            spec = {"tensor_constant": {"arg": {"name": held}, "tensor_constant_name": cap}}
            signature["input_specs"].insert(first_image, spec)
            stored[cap] = {
                "path_name": member.rpartition("/")[2], "is_param": False, "use_pickle": False,
                "tensor_meta": _described(bound),
            }  # fmt: skip
            added[member] = bound.numpy().tobytes()
            first_image += 1
    graph["nodes"] = nodes
    return {program_name: json.dumps(program).encode(), config_name: json.dumps(config).encode(), **added}


def _minimum(left: str, right: str, result: str) -> Document:
    def tensor(name: str) -> Document:
        return {"as_tensor": {"name": name}}

    return {
        "target": "torch.ops.aten.minimum.default",
        "inputs": [
            {"name": "self", "arg": tensor(left), "kind": _POSITIONAL},
            {"name": "other", "arg": tensor(right), "kind": _POSITIONAL},
        ],
        "outputs": [tensor(result)],
        "metadata": {},
        "is_hop_single_tensor_return": None,
        "name": result,
    }


def _described(tensor: Tensor) -> Document:
    return {
        "dtype": FLOAT32,
        "sizes": [{"as_int": size} for size in tensor.shape],
        "requires_grad": False,
        "device": {"type": "cpu", "index": None},
        "strides": [{"as_int": stride} for stride in tensor.stride()],
        "storage_offset": {"as_int": 0},
        "layout": STRIDED,
    }


def _names(outputs: Any) -> list[str]:  # noqa: ANN401 - JSON
    """The names of the values in a part of the document."""
    if isinstance(outputs, list):
        return [name for part in outputs for name in _names(part)]
    if not isinstance(outputs, dict):
        return []
    if isinstance(outputs.get("name"), str):
        return [outputs["name"]]
    return [name for part in outputs.values() for name in _names(part)]


def _rename(outputs: Any, old: str, new: str) -> None:  # noqa: ANN401 - JSON
    for part in outputs if isinstance(outputs, list) else outputs.values() if isinstance(outputs, dict) else ():
        if isinstance(part, dict) and part.get("name") == old:
            part["name"] = new
        else:
            _rename(part, old, new)
