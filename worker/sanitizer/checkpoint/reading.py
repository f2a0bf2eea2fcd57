"""Read an uploaded checkpoint, find its state dict, and write it again in the same shape around changed tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Literal

import torch
from torch import Tensor

from worker.sanitizer import archives, safetensors_file
from worker.sanitizer.archives import Member
from worker.sanitizer.checkpoint import repository, torch_zip
from worker.sanitizer.checkpoint.repository import Repository
from worker.sanitizer.checkpoint.torch_zip import TorchZip
from worker.sanitizer.programs import Program, onnx_model, pt2
from worker.sanitizer.programs.onnx_model import OnnxModel
from worker.sanitizer.programs.pt2 import ExportedProgram
from worker.sanitizer.refusals import (
    BarePickleError,
    CheckpointRefusedError,
    EmptyUploadError,
    LegacyCheckpointError,
    NonFiniteWeightsError,
    NoStateDictError,
    SeveralStateDictsError,
    UnknownCheckpointFormatError,
    UnreadableUploadError,
)
from worker.sanitizer.safetensors_file import SafetensorsFile

CheckpointFormat = Literal["safetensors", "torch_zip", "pt2", "onnx", "hugging_face"]

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights")
PREFIXES = ("module.", "_orig_mod.")

_FIRST_BYTES = 512
_LEGACY_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa85019")
_TAR_MAGIC_AT = 257
_FINITE_CHUNK = 2**24


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was read. `tensors` maps the bare keys, in the file's order; treat them as read-only.

    `program` is the network itself where the file carries one, None for a state dict.
    """

    format: CheckpointFormat
    tensors: dict[str, Tensor]
    wrapper: str | None
    prefix: str
    source: SafetensorsFile | TorchZip | ExportedProgram | OnnxModel | Repository
    program: Program | None = None

    def program_for(self, channels: int, height: int, width: int) -> Program | None:
        """The network for images of this size, None for a state dict.

        Raises:
            CheckpointRefusedError: the file leaves the size open, and its graph does not take this one.
        """
        if isinstance(self.source, OnnxModel):
            return onnx_model.sized(self.source, channels, height, width)
        return self.program

    def write(
        self, path: Path, tensors: Mapping[str, Tensor], caps: Mapping[str, Tensor] = MappingProxyType({})
    ) -> None:
        """Write the checkpoint with these tensors replaced; those not given keep their bytes.

        `caps` are bounds of activations, by what the file calls the value that they are broadcast over; only a program
        has such names.

        Format, wrapper, prefixes, order, metadata, ties, dtypes and parameters stay. The bytes depend on the upload
        and the tensors alone. The file appears under its name only when it is whole.

        Raises:
            TiedTensorsDisagreeError: two names share memory but were given different values.
        """
        for name, tensor in tensors.items():
            known = self.tensors[name]
            assert tensor.shape == known.shape, name
            assert tensor.dtype == known.dtype, name
        partial = path.with_name(path.name + ".part")
        try:
            with partial.open("wb") as file:
                self._write(file, tensors, caps)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def _write(self, file: BinaryIO, tensors: Mapping[str, Tensor], caps: Mapping[str, Tensor]) -> None:
        assert not caps or self.program is not None
        on_cpu = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        if isinstance(self.source, SafetensorsFile):
            safetensors_file.write(file, self.source, {self.prefix + name: on_cpu[name] for name in on_cpu})
        elif isinstance(self.source, ExportedProgram):
            pt2.write(file, self.source, on_cpu, caps)
        elif isinstance(self.source, OnnxModel):
            onnx_model.write(file, self.source, on_cpu, caps)
        elif isinstance(self.source, Repository):
            repository.write(file, self.source, on_cpu)
        else:
            torch_zip.write(file, self.source, [(self.tensors[name], value) for name, value in on_cpu.items()])


def read(path: Path) -> Checkpoint:
    """Read a safetensors file, a torch zip with a state dict, an exported program, ONNX or a Hugging Face zip.

    Raises:
        CheckpointRefusedError: the file is not accepted; the code says by which rule.
    """
    try:
        return _read(path)
    except OSError as error:
        raise UnreadableUploadError("the uploaded file cannot be read on the worker; try again") from error


def _read(path: Path) -> Checkpoint:
    with path.open("rb") as file:
        first_bytes = file.read(_FIRST_BYTES)
    if first_bytes.startswith(archives.MAGIC):
        members = _members(path)
        names = [member.name for member in members]
        if pt2.looks_like(names):
            return _of_program("pt2", pt2.read(path))
        if repository.looks_like(names):
            return _of_repository(repository.read(path, members))
        archive = torch_zip.read(path)
        wrapper, found = _find_state_dict(archive.root)
        return _checked("torch_zip", found, wrapper, archive)
    if safetensors_file.looks_like(first_bytes):
        file_read = safetensors_file.read(path)
        if not file_read.tensors:
            raise NoStateDictError("the safetensors file holds no tensor; save the model's state dict")
        return _checked("safetensors", file_read.tensors, None, file_read)
    if onnx_model.looks_like(first_bytes):
        return _of_program("onnx", onnx_model.read(path))
    raise _refusal(first_bytes)


def _members(path: Path) -> list[Member]:
    with path.open("rb") as file:
        return archives.read_directory(file, path.stat().st_size, max_members=pt2.MAX_MEMBERS)


def _of_repository(source: Repository) -> Checkpoint:
    if not source.weights.tensors:
        raise NoStateDictError("model.safetensors holds no tensor; save the model with save_pretrained")
    _refuse_non_finite(source.weights.tensors)
    return Checkpoint(format="hugging_face", tensors=source.weights.tensors, wrapper=None, prefix="", source=source)


def _of_program(kind: Literal["pt2", "onnx"], source: ExportedProgram | OnnxModel) -> Checkpoint:
    _refuse_non_finite(source.tensors)
    return Checkpoint(
        format=kind, tensors=source.tensors, wrapper=None, prefix="", source=source, program=source.program
    )


def _checked(
    kind: Literal["safetensors", "torch_zip"],
    found: Mapping[str, Tensor],
    wrapper: str | None,
    source: SafetensorsFile | TorchZip,
) -> Checkpoint:
    _refuse_non_finite(found)
    prefix = _common_prefix(found)
    tensors = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return Checkpoint(format=kind, tensors=tensors, wrapper=wrapper, prefix=prefix, source=source)


def _refusal(first_bytes: bytes) -> CheckpointRefusedError:
    if not first_bytes:
        return EmptyUploadError("the file is empty; upload the checkpoint again")
    if _LEGACY_MAGIC in first_bytes[:64] or first_bytes[_TAR_MAGIC_AT : _TAR_MAGIC_AT + 5] == b"ustar":
        return LegacyCheckpointError(
            "this is a checkpoint in the format from before torch 1.6; load it where you trust it and save it again "
            "with torch.save(model.state_dict(), path), or as safetensors"
        )
    if first_bytes[0] == 0x80 and len(first_bytes) > 1 and first_bytes[1] <= 5:
        return BarePickleError(
            "this is a pickle, and loading it could run code; save the weights with "
            "torch.save(model.state_dict(), path), or as safetensors (docs/pickled-model.md)"
        )
    return UnknownCheckpointFormatError(
        "this is neither safetensors nor a torch checkpoint, nor ONNX; save the weights as safetensors, "
        "or with torch.save(model.state_dict(), path)"
    )


def _find_state_dict(root: object) -> tuple[str | None, dict[str, Tensor]]:
    if _is_state_dict(root):
        return None, root  # type: ignore[return-value]
    candidates = [name for name in WRAPPERS if isinstance(root, dict) and _is_state_dict(root.get(name))]
    if len(candidates) > 1:
        raise SeveralStateDictsError(
            f"the checkpoint holds several state dicts ({', '.join(candidates)}); save the one to sanitize alone"
        )
    if not candidates:
        raise NoStateDictError(
            "the checkpoint holds no state dict, neither at the top nor under "
            f"{', '.join(WRAPPERS)}; save torch.save(model.state_dict(), path)"
        )
    assert isinstance(root, dict)
    return candidates[0], root[candidates[0]]


def _is_state_dict(value: object) -> bool:
    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(isinstance(key, str) and isinstance(item, Tensor) for key, item in value.items())
    )


def _common_prefix(names: Mapping[str, Tensor]) -> str:
    """Return what data parallelism and torch.compile put before every key, or nothing if some keys lack it."""
    prefix = ""
    while True:
        longer = [prefix + more for more in PREFIXES if all(name.startswith(prefix + more) for name in names)]
        # A key that is nothing but the prefix would become empty.
        if not longer or any(name == longer[0] for name in names):
            return prefix
        prefix = longer[0]


def _refuse_non_finite(tensors: Mapping[str, Tensor]) -> None:
    seen: set[tuple[int, tuple[int, ...], tuple[int, ...]]] = set()
    for name, tensor in tensors.items():
        view = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))
        if not tensor.dtype.is_floating_point or (view in seen and tensor.numel()):
            continue
        seen.add(view)
        if not all(torch.isfinite(part).all() for part in _parts(tensor.detach())):
            raise NonFiniteWeightsError(
                f"{name!r} holds NaN or infinity; upload a checkpoint whose weights are finite", tensor=name
            )


def _parts(tensor: Tensor) -> list[Tensor]:
    """Return views of at most some 2^24 elements, so that a test of one costs little memory."""
    if tensor.dim() == 0 or tensor.numel() <= _FINITE_CHUNK:
        return [tensor]
    rows = max(1, _FINITE_CHUNK * tensor.shape[0] // tensor.numel())
    return list(torch.split(tensor, rows))
