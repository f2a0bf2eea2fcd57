"""The formats: written as users write them, loaded where they came from, and looked into while they run there.

Shapes: N images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import contextlib
import io
import json
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import safetensors.torch
import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.trips import repositories

# Name of a tensor in the file -> what to look at the result of each operator that takes it with.
Look = Callable[[Tensor], None]
FORMATS = ("safetensors", "pth", "pt2", "onnx", "onnx_new")
# The way of weights alone for models of transformers, whose configuration lies beside them.
REPOSITORY = "hugging_face"
SUFFIXES = {"onnx_new": "onnx", REPOSITORY: "zip"}
_FREE = ({0: torch.export.Dim.DYNAMIC},)
_REARRANGING = {"Transpose", "Reshape", "Unsqueeze", "Squeeze", "Identity", "Cast", "Expand", "Slice"}
_REARRANGING_ATEN = {
    "t",
    "transpose",
    "permute",
    "view",
    "reshape",
    "unsqueeze",
    "expand",
    "slice",
    "clone",
    "_to_copy",
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A file in its own library.

    Attributes:
        run: Logits (N, K) of normalised images; each `Look` sees what the operators that take its tensor give.
        facts: Keys, dtypes, shapes and every byte that is not a weight, to be compared with another file's.
    """

    run: Callable[[Tensor, Mapping[str, Look]], Tensor]
    facts: Callable[[], object]


def write(kind: str, module: nn.Module, path: Path, images_NCHW: Tensor, *, is_free: bool) -> None:
    """Write the module as the owner of its code would.

    Args:
        kind: One of FORMATS, or REPOSITORY; `onnx` is torch's older exporter, which folds batch norms, `onnx_new` its
            newer one.
        module: In evaluation mode.
        path: Where to.
        images_NCHW: Of the shape that a program takes.
        is_free: Whether a program takes any number of images.
    """
    zeros = (torch.zeros_like(images_NCHW),)
    if kind == "safetensors":
        state = {name: tensor.detach().clone().contiguous() for name, tensor in module.state_dict().items()}
        safetensors.torch.save_file(state, path, metadata={"format": "pt", "note": "kept"})
    elif kind == REPOSITORY:
        repositories.write(module, path)
    elif kind == "pth":
        torch.save({"state_dict": module.state_dict(), "epoch": 3}, path)
    elif kind == "pt2":
        torch.export.save(torch.export.export(module, zeros, dynamic_shapes=_FREE if is_free else None), path)
    elif kind == "onnx":
        axes = {"images": {0: "n"}} if is_free else None
        torch.onnx.export(module, zeros, path, dynamo=False, input_names=["images"], dynamic_axes=axes)
    else:
        options: dict[str, Any] = {"dynamic_shapes": _FREE if is_free else None, "external_data": False}
        torch.onnx.export(module, zeros, path, dynamo=True, verbose=False, **options)


def load(kind: str, path: Path, build: Callable[[], nn.Module]) -> Loaded:
    """Load the file as its user would; `build` gives the module that a state dict belongs to."""
    if kind in {"safetensors", "pth"}:
        return _of_state_dict(kind, path, build)
    if kind == REPOSITORY:
        return _of_repository(path, build)
    return _of_pt2(path) if kind == "pt2" else _of_onnx(path)


def _of_state_dict(kind: str, path: Path, build: Callable[[], nn.Module]) -> Loaded:
    module = build()
    is_zip = kind == "pth"
    state = torch.load(path, weights_only=True)["state_dict"] if is_zip else safetensors.torch.load_file(path)
    own = module.state_dict()
    assert own.keys() == state.keys()
    own.update(state)  # Which says of which version of the code each part is: MNASNet refuses a state without.
    module.load_state_dict(own, strict=True)
    facts = (lambda: _outline(torch.load(path, weights_only=True))) if is_zip else lambda: _header(path)
    return Loaded(_watched(module), facts)


def _of_repository(path: Path, build: Callable[[], nn.Module]) -> Loaded:
    module, own = repositories.read(path, build)
    run = _watched(module)
    return Loaded(
        lambda images_NCHW, looks: run(images_NCHW, {own[name]: look for name, look in looks.items()}),
        lambda: repositories.facts(path),
    )


def _watched(module: nn.Module) -> Callable[[Tensor, Mapping[str, Look]], Tensor]:
    def run(images_NCHW: Tensor, looks: Mapping[str, Look]) -> Tensor:
        tensors = module.state_dict(keep_vars=True)
        watched = {_memory(tensors[name]): look for name, look in looks.items()}
        # With gradients attention takes the way of single operators, not the fused one that shows nothing.
        with torch.set_grad_enabled(bool(looks)), _Watching(watched) if looks else contextlib.nullcontext():
            logits_NK: Tensor = module(images_NCHW)
        return logits_NK.detach()

    return run


class _Watching(TorchDispatchMode):
    """Shows what each operator gives that takes a watched tensor, or a view of it, and gives no view of it."""

    def __init__(self, watched: Mapping[int, Look]) -> None:
        super().__init__()
        self.watched = watched

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        result = func(*args, **(kwargs or {}))
        value = result[0] if isinstance(result, (tuple, list)) else result
        if isinstance(value, Tensor):
            taken = {_memory(one) for one in args if isinstance(one, Tensor)} - {_memory(value)}
            for memory in taken & self.watched.keys():
                self.watched[memory](value)
        return result


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _of_pt2(path: Path) -> Loaded:
    graph = torch.export.load(path).module()
    assert isinstance(graph, fx.GraphModule)

    def run(images_NCHW: Tensor, looks: Mapping[str, Look]) -> Tensor:
        watched: dict[fx.Node, Look] = {}
        for node in graph.graph.nodes:
            if node.op == "get_attr" and node.target in looks:
                watched |= dict.fromkeys(_users(node), looks[str(node.target)])
        with torch.inference_mode():
            logits_NK = _Looking(graph, watched).run(images_NCHW)
        return logits_NK if isinstance(logits_NK, Tensor) else logits_NK[0]

    return Loaded(run, lambda: _zip_facts(path, is_weight=_is_weight_of_pt2))


class _Looking(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule, watched: Mapping[fx.Node, Look]) -> None:
        super().__init__(graph)
        self.watched = watched

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401 - the type of fx.Interpreter's method
        value = super().run_node(n)
        if n in self.watched:
            self.watched[n](value[0] if isinstance(value, (tuple, list)) else value)
        return value


def _users(node: fx.Node) -> list[fx.Node]:
    found = []
    for user in node.users:
        name = str(user.target).split(".")[1:2]
        found += _users(user) if name and name[0] in _REARRANGING_ATEN else [user]
    return found


def _of_onnx(path: Path) -> Loaded:
    model = onnx.load(path)
    plain = _session(path.read_bytes())

    def run(images_NCHW: Tensor, looks: Mapping[str, Look]) -> Tensor:
        feed = {plain.get_inputs()[0].name: images_NCHW.numpy()}
        if looks:
            shown = onnx.ModelProto()
            shown.CopyFrom(model)
            results = {name: _results(model.graph, name) for name in looks}
            added = sorted(
                {name for found in results.values() for name in found} - {o.name for o in model.graph.output}
            )
            shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in added)
            values = (
                dict(zip(added, _session(shown.SerializeToString()).run(added, feed), strict=True)) if added else {}
            )
            for name, look in looks.items():
                for result in results[name]:
                    if result in values:
                        look(torch.from_numpy(values[result]))
        return torch.from_numpy(plain.run(None, feed)[0])

    return Loaded(run, lambda: _onnx_facts(path))


def _results(graph: onnx.GraphProto, name: str) -> list[str]:
    """What the nodes that take a tensor give, however the tensor is turned before they take it."""
    found = []
    for node in graph.node:
        if name in node.input:
            found += _results(graph, node.output[0]) if node.op_type in _REARRANGING else [node.output[0]]
    return found


def _session(source: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _header(path: Path) -> object:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), list(json.loads(_at(path, 8, length)))


def _at(path: Path, start: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(length)


def _outline(value: Any) -> object:  # noqa: ANN401 - whatever torch.save took
    """What was saved, with no more of each tensor than its form: zips of torch are never twice the same."""
    if isinstance(value, Tensor):
        return value.dtype, tuple(value.shape), value.stride(), value.requires_grad
    if isinstance(value, dict):
        return type(value).__name__, [(key, _outline(item)) for key, item in value.items()]
    return value


def _is_weight_of_pt2(name: str) -> bool:
    # Sample inputs are a pickle, which the product replaces by one of its own.
    below = name.partition("/")[2]
    return below.startswith(("data/weights/weight_", "data/sample_inputs/"))


def _zip_facts(path: Path, *, is_weight: Callable[[str], bool]) -> object:
    """Each member's bytes; of weights their number of bytes alone, and of sample inputs that they are there."""
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        facts = {}
        for member in archive.infolist():
            size = None if "/sample_inputs/" in member.filename else member.file_size
            facts[member.filename] = size if is_weight(member.filename) else archive.read(member)
        return list(facts), facts


def _onnx_facts(path: Path) -> object:
    """The whole message without the weights' values."""
    model = onnx.load(path)
    tensors = [*model.graph.initializer]
    tensors += [attribute.t for node in model.graph.node if node.op_type == "Constant" for attribute in node.attribute]
    lengths = []
    for tensor in tensors:
        if tensor.data_type in {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}:
            lengths.append((len(tensor.raw_data), len(tensor.float_data), len(tensor.double_data)))
            for values in ("raw_data", "float_data", "double_data"):
                tensor.ClearField(values)
    return path.stat().st_size, lengths, model.SerializeToString(deterministic=True)


def quietly(work: Callable[[], None]) -> None:
    """Do something without the warnings of torch's exporters, which are about their own future."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        work()
