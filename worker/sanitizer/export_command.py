"""`lustrate export`: a file to upload, from the model's own code. That code runs here, on its owner's machine."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worker.sanitizer.errors import SanitizerError
from worker.sanitizer.spec import ArchitectureSpec, InputSpec


def main(arguments: Sequence[str], prog: str = "python -m worker.sanitizer export") -> int:
    """Export one model; 0 with the metadata on standard output, 1 with the reason where it was refused."""
    options = _parser(prog).parse_args(arguments)
    # Torch takes seconds to import; --help and a misspelt option should not.
    from worker.sanitizer import exporting  # noqa: PLC0415

    try:
        height, width = options.size * 2 if len(options.size) == 1 else options.size
        input_spec = InputSpec(height=height, width=width, mean=tuple(options.mean), std=tuple(options.std))
        module = exporting.load_module(options.model, _object(options.arguments), options.weights)
        architecture = _architecture(options.architecture)
        exported = exporting.export(module, options.output, input_spec, architecture)
    except (SanitizerError, OSError) as error:
        code = error.code if isinstance(error, SanitizerError) else "file_error"
        sys.stderr.write(f"{code}: {error}\n")
        return 1
    sys.stderr.write(
        f"{options.output}: read back, the logits differ by at most {exported.difference:.1e} "
        f"(the largest is {exported.largest:.3g}){_BATCH[exported.batch]}\n"
    )
    name = options.name or options.output.stem
    sys.stdout.write(json.dumps(exported.metadata(name), indent=2) + "\n")
    return 0


_BATCH = {"free": ", for batches of any size", "fixed": ", for batches of one size, which are padded", None: ""}


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=f"{__doc__} Standard output is the metadata to send with the file.",
        epilog="The model's code is imported and run: never export code that you do not trust.",
    )
    parser.add_argument("model", help="package.module:callable or path/to/file.py:callable, giving a torch.nn.Module")
    parser.add_argument("--arguments", default="{}", metavar="JSON", help="keyword arguments of the callable")
    parser.add_argument("--weights", type=Path, help="its state dict: safetensors or torch.save; no pickle code runs")
    parser.add_argument("--size", type=int, nargs="+", required=True, metavar="PIXELS", help="height and width, or one")
    parser.add_argument(
        "--mean", type=float, nargs="+", required=True, help="per channel, of pixels in [0, 1]; 0 where there is none"
    )
    parser.add_argument("--std", type=float, nargs="+", required=True, help="per channel; 1 where there is none")
    parser.add_argument("--architecture", metavar="JSON", help="for .safetensors; looked for where absent")
    parser.add_argument("--name", help="of the model; the output's where absent")
    parser.add_argument("-o", "--output", type=Path, required=True, help=".pt2, .onnx or .safetensors")
    return parser


def _architecture(text: str | None) -> ArchitectureSpec | None:
    if text is None:
        return None
    try:
        return ArchitectureSpec(**_object(text))
    except TypeError as error:
        raise SanitizerError(f"--architecture: {error}") from error


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SanitizerError(f"{text[:60]!r} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise SanitizerError(f"{text[:60]!r} must be a JSON object")
    return value
