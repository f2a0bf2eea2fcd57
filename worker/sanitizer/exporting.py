"""From a model's own code to a file that Lustrate takes. It runs that code, so it belongs on the owner's machine.

What was written is read back by the reader that an upload meets, and must give the logits that the module gives.

Shapes: N images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from worker.sanitizer import checkpoint as checkpoints
from worker.sanitizer import registered
from worker.sanitizer.case import load_network
from worker.sanitizer.errors import SanitizerError
from worker.sanitizer.spec import ArchitectureSpec, InputSpec

ExportFormat = Literal["pt2", "onnx", "safetensors"]
FORMATS: dict[str, ExportFormat] = {".pt2": "pt2", ".onnx": "onnx", ".safetensors": "safetensors"}
# Of the largest logit, or of one where all logits are smaller.
TOLERANCE = 1e-5
# Another number than the batch that the module is traced with, so that a batch that was baked in shows.
NUM_CHECKED = 5
_TRACED_BATCH = 2
_FIXED_BATCH = 16
_FREE = ({0: torch.export.Dim.DYNAMIC},)


class ExportError(SanitizerError):
    """The module cannot be made or written; the sentence says at which step."""

    code = "export_failed"


class ExportDiffersError(SanitizerError):
    """What our reader makes of the file does not answer as the module does."""

    code = "export_differs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written.

    Attributes:
        architecture: To be sent with the file.
        input_spec: To be sent with the file.
        batch: `free`, `fixed`, or None where the file holds no graph.
        difference: The largest between a logit of the module and of the file.
        largest: The module's largest logit.
    """

    architecture: ArchitectureSpec
    input_spec: InputSpec
    batch: Literal["free", "fixed"] | None
    difference: float
    largest: float

    def metadata(self, name: str) -> dict[str, Any]:
        """The JSON object that goes with the upload, without what is left at its default."""
        return {
            "name": name,
            "architecture": _given(self.architecture, {"name": "", "options": {}, "class_names": ()}),
            "input": {key: asdict(self.input_spec)[key] for key in ("height", "width", "mean", "std")},
        }


def load_module(source: str, arguments: Mapping[str, Any], weights: Path | None) -> nn.Module:
    """Call `package.module:callable` or `path/to/file.py:callable`, and load the weights into what it returns.

    Weights are read as an upload is: no pickle of theirs can run code.

    Raises:
        ExportError: there is no such callable, or it does not return a module.
        SanitizerError: the weights are refused, or do not fit.
    """
    made = _resolve(source)
    # A module is callable too, and means itself.
    module = made if isinstance(made, nn.Module) and not arguments else made(**arguments)
    if not isinstance(module, nn.Module):
        raise ExportError(f"{source} gives a {type(module).__name__}; it must return a torch.nn.Module")
    if weights is not None:
        module.load_state_dict(checkpoints.match(checkpoints.read(weights), module.state_dict()))
    return module.cpu().float().eval()


def export(
    module: nn.Module, output: Path, input_spec: InputSpec, architecture: ArchitectureSpec | None = None
) -> Exported:
    """Write the module in the format of the file's ending, read it back, and compare.

    Args:
        module: In evaluation mode, on the CPU.
        output: `.pt2`, `.onnx` or `.safetensors`; written only if the comparison holds.
        input_spec: What the module takes. Its mean and standard deviation are not part of the file.
        architecture: For safetensors; None looks for a registered one.

    Raises:
        ExportError: the module cannot be exported.
        ExportDiffersError: the file does not answer as the module does.
        SanitizerError: our reader refuses what was written, with the reason that an upload would get.
    """
    kind = FORMATS.get(output.suffix)
    if kind is None:
        raise ExportError(f"the output must end in {', '.join(FORMATS)}, not {output.suffix or 'nothing'!r}")
    images_NCHW = _images(input_spec)
    module = _returning_logits(module, images_NCHW)
    with torch.inference_mode():
        logits_NK = module(images_NCHW)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        path = Path(folder) / output.name
        if kind == "safetensors":
            found = architecture or registered.find(module, images_NCHW, logits_NK, TOLERANCE)
            registered.save(module, path)
            exported = _checked(path, found, input_spec, images_NCHW, logits_NK, batch=None)
        else:
            found = ArchitectureSpec(source="file", num_classes=logits_NK.shape[1], in_channels=len(input_spec.mean))
            exported = _program(module, path, kind, found, input_spec, images_NCHW, logits_NK)
        path.replace(output)
    return exported


def _program(
    module: nn.Module,
    path: Path,
    kind: ExportFormat,
    architecture: ArchitectureSpec,
    input_spec: InputSpec,
    images_NCHW: Tensor,
    logits_NK: Tensor,
) -> Exported:
    """With a batch of any size if that works, else with a fixed one, which our reader pads."""
    write = _write_pt2 if kind == "pt2" else _write_onnx
    failures: list[SanitizerError] = []
    batch: Literal["free", "fixed"]
    for batch in ("free", "fixed"):
        try:
            write(module, images_NCHW, path, is_free=batch == "free")
            return _checked(path, architecture, input_spec, images_NCHW, logits_NK, batch=batch)
        except SanitizerError as error:
            failures.append(error)
    # What is wrong with the model itself, not with its batch, comes up at the simpler attempt.
    raise failures[-1]


def _write_pt2(module: nn.Module, images_NCHW: Tensor, path: Path, *, is_free: bool) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise ExportError("torch.export does not take TorchScript; write it as .onnx")
    try:
        # The example becomes part of the file, so that it must not be anybody's image.
        example_NCHW = _example(images_NCHW, is_free)
        program = torch.export.export(module, (example_NCHW,), dynamic_shapes=_FREE if is_free else None)
        torch.export.save(program, path)
    except Exception as error:  # the module's own code runs here, and may raise anything
        raise ExportError(f"torch.export does not take this module: {_first_line(error)}") from error


def _write_onnx(module: nn.Module, images_NCHW: Tensor, path: Path, *, is_free: bool) -> None:
    # The newer exporter does not take TorchScript; the older one cannot follow as many modules.
    is_script = isinstance(module, torch.jit.ScriptModule)
    if not is_script and importlib.util.find_spec("onnxscript") is None:
        raise ExportError(
            "torch's exporter to ONNX needs the package onnxscript (pip install onnxscript); or take .pt2"
        )
    options: dict[str, Any] = {"dynamo": not is_script}
    if is_script:
        options |= {"input_names": ["images"], "dynamic_axes": {"images": {0: "n"}} if is_free else None}
    else:
        options |= {"external_data": False, "dynamic_shapes": _FREE if is_free else None}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(module, (_example(images_NCHW, is_free),), path, verbose=False, **options)
    except Exception as error:  # as above
        raise ExportError(f"torch.onnx does not take this module: {_first_line(error)}") from error


def _checked(
    path: Path,
    architecture: ArchitectureSpec,
    input_spec: InputSpec,
    images_NCHW: Tensor,
    logits_NK: Tensor,
    *,
    batch: Literal["free", "fixed"] | None,
) -> Exported:
    """Read the file as an upload, and compare logits."""
    _, network = load_network(path, architecture, input_spec, torch.device("cpu"))
    mean_1C11, std_1C11 = (torch.tensor(v).view(1, -1, 1, 1) for v in (input_spec.mean, input_spec.std))
    with torch.inference_mode():
        found_NK = network(images_NCHW * std_1C11 + mean_1C11)
    largest = float(logits_NK.abs().amax())
    difference = float((found_NK - logits_NK).abs().amax()) if found_NK.shape == logits_NK.shape else float("inf")
    if not difference <= TOLERANCE * max(1.0, largest):
        raise ExportDiffersError(
            f"the file's logits differ from the module's by up to {difference:.2g} (the largest logit is "
            f"{largest:.2g}): does forward() draw random numbers, or look at its input's values?"
        )
    return Exported(
        architecture=architecture, input_spec=input_spec, batch=batch, difference=difference, largest=largest
    )


class _Logits(nn.Module):
    """Takes the logits out of what a model of Hugging Face returns."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images_NCHW: Tensor) -> Tensor:
        output = self.model(images_NCHW)
        logits: Tensor = output["logits"] if isinstance(output, dict) else output.logits
        return logits


def _returning_logits(module: nn.Module, images_NCHW: Tensor) -> nn.Module:
    try:
        with torch.inference_mode():
            output = module(images_NCHW)
            if not isinstance(output, Tensor):
                module = _Logits(module)
                output = module(images_NCHW)
    except Exception as error:  # as above
        raise ExportError(
            f"the module does not run on {len(images_NCHW)} images of {tuple(images_NCHW.shape[1:])}, or returns "
            f"no logits: {_first_line(error)}. Check --size and the number of --mean values"
        ) from error
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != len(images_NCHW):
        raise ExportError("the module must return logits of shape (images, classes)")
    return module


def _resolve(source: str) -> Any:  # noqa: ANN401 - whatever the user's code holds
    where, _, name = source.rpartition(":")
    if not where or not name:
        raise ExportError(f"{source!r} must be package.module:callable or path/to/file.py:callable")
    path = Path(where)
    # The user's own modules come first, as `python path/to/file.py` would have it.
    sys.path.insert(0, str(path.resolve().parent) if path.suffix == ".py" else str(Path.cwd()))
    try:
        namespace = _run_file(path) if path.suffix == ".py" else importlib.import_module(where)
        found: Any = namespace
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, OSError, AttributeError) as error:
        raise ExportError(f"{source} was not found: {_first_line(error)}") from error
    if not callable(found):
        raise ExportError(f"{source} is a {type(found).__name__}, not a callable that returns a module")
    return found


def _run_file(path: Path) -> Any:  # noqa: ANN401 - a module of the user's
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Classes find their module by this name, e.g. dataclasses.
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module


def _images(input_spec: InputSpec) -> Tensor:
    """Normalised noise, the same each time."""
    generator = torch.Generator().manual_seed(0)
    shape = (NUM_CHECKED, len(input_spec.mean), input_spec.height, input_spec.width)
    return torch.randn(shape, generator=generator)


def _example(images_NCHW: Tensor, is_free: bool) -> Tensor:
    return torch.zeros(_TRACED_BATCH if is_free else _FIXED_BATCH, *images_NCHW.shape[1:])


def _given(spec: ArchitectureSpec, defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in asdict(spec).items() if key not in defaults or value != defaults[key]}


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
