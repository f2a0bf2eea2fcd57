"""Bounds of activations, put into an exported program as constants and calls of aten::minimum.

The call that made a value makes it under another name, and the minimum of it and the bound bears the old one: whoever
read the value reads the bounded one. No weight is added, so the state dict has the keys that it had.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
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
    taken = _value_names(graph) | {*file.weights, *stored}
    numbers = (n for n in itertools.count(len(stored)) if f"data/constants/tensor_{n}" not in file.members)
    first_image = next(row for row, spec in enumerate(signature["input_specs"]) if "user_input" in spec)
    added: dict[str, bytes] = {}
    nodes = []
    for node in graph["nodes"]:
        nodes.append(node)
        for place in [place for place in _places(node.get("outputs")) if place["name"] in caps]:
            value = place["name"]
            before, cap = fresh(f"{value}_uncapped", taken), fresh(f"lustrate_cap_{len(added)}", taken)
            held, path_name = fresh(f"c_{cap}", taken), f"tensor_{next(numbers)}"
            bound = caps[value].detach().cpu().to(torch.float32).contiguous()
            place["name"] = before
            if node.get("name") == value:
                node["name"] = before
            nodes.append(_minimum(before, held, value))
            values[before], values[held] = values[value], _described(bound)
            graph["inputs"].insert(first_image, {"as_tensor": {"name": held}})
            spec = {"tensor_constant": {"arg": {"name": held}, "tensor_constant_name": cap}}
            signature["input_specs"].insert(first_image, spec)
            meta = _described(bound)
            stored[cap] = {"path_name": path_name, "is_param": False, "use_pickle": False, "tensor_meta": meta}
            added[f"data/constants/{path_name}"] = bound.numpy().tobytes()
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


def _value_names(graph: Document) -> set[str]:
    """Every name that a value of the graph has."""
    described = (
        key for kind in ("tensor", "sym_int", "sym_bool", "sym_float") for key in graph.get(f"{kind}_values") or ()
    )
    made = (place["name"] for node in graph["nodes"] for place in _places(node.get("outputs")))
    taken = (place["name"] for place in _places(graph["inputs"]))
    return {*described, *made, *taken}


def _places(arguments: Any) -> Iterator[Document]:  # noqa: ANN401 - JSON
    """The objects that name the values in a list of tagged unions: one each, or several where one holds a list."""
    for argument in arguments if isinstance(arguments, list) else ():
        for content in argument.values() if isinstance(argument, dict) else ():
            for place in content if isinstance(content, list) else (content,):
                if isinstance(place, dict) and isinstance(place.get("name"), str):
                    yield place
