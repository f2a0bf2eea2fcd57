"""The library from a shell: sanitize one checkpoint on this machine without a service, or `export` one to upload."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worker.sanitizer import export_command, report
from worker.sanitizer.errors import SanitizerError
from worker.sanitizer.spec import ArchitectureSpec, InputSpec, SanitizeSpec, parse_spec


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m worker.sanitizer`; 0 when the checkpoint was written, 1 with the reason when it was refused."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["export"]:
        return export_command.main(arguments[1:])
    options = _parser().parse_args(arguments)
    # Torch takes seconds to import; --help and a misspelt option should not.
    from worker.sanitizer.sanitize import sanitize  # noqa: PLC0415

    try:
        meta = _read_object(options.meta)
        result = sanitize(
            checkpoint_path=options.checkpoint,
            clean_path=options.clean,
            output_path=options.output,
            architecture=_build(ArchitectureSpec, meta.get("architecture"), "architecture"),
            input_spec=_input(meta.get("input")),
            spec=parse_spec(_read_object(options.spec)) if options.spec else SanitizeSpec(),
            triggered_path=options.triggered,
            target_class=options.target_class,
            figures_path=options.figures,
            progress=_say if sys.stderr.isatty() else _silent,
        )
    except (SanitizerError, OSError) as error:
        code = error.code if isinstance(error, SanitizerError) else "file_error"
        sys.stderr.write(f"{code}: {error}\n")
        return 1
    text = report.to_json(result)
    if options.report:
        options.report.write_text(text + "\n", encoding="utf-8")
    else:
        sys.stdout.write(text + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m worker.sanitizer", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="the suspect: safetensors, a torch state dict, or a .pt2 program")
    parser.add_argument("--meta", type=Path, required=True, help="JSON with `architecture` and `input`")
    parser.add_argument("--clean", type=Path, required=True, help="the clean labelled set")
    parser.add_argument("--triggered", type=Path, help="trigger samples, to score with")
    parser.add_argument("--target-class", type=int, help="the class that the trigger leads to, if known")
    parser.add_argument("--spec", type=Path, help="JSON of the specification; the default where absent")
    parser.add_argument("-o", "--output", type=Path, required=True, help="where the sanitized checkpoint goes")
    parser.add_argument("--report", type=Path, help="where the report goes; standard output where absent")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="folder for the report's figures, PNG files")
    return parser


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SanitizerError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise SanitizerError(f"{path} must hold a JSON object.")
    return value


def _input(value: object) -> InputSpec:
    if isinstance(value, dict):
        value = {name: tuple(item) if isinstance(item, list) else item for name, item in value.items()}
    built: InputSpec = _build(InputSpec, value, "input")
    return built


def _build(kind: Any, value: object, what: str) -> Any:  # noqa: ANN401 - any of the specification's classes
    if not isinstance(value, dict):
        raise SanitizerError(f"The metadata needs an object `{what}`.")
    try:
        return kind(**value)
    except TypeError as error:
        raise SanitizerError(f"`{what}`: {error}") from error


def _say(phase: str, done: int, total: int) -> None:
    sys.stderr.write(f"\r{phase} {done}/{total}\033[K")
    if done == total:
        sys.stderr.write("\n")


def _silent(_phase: str, _done: int, _total: int) -> None:
    """No terminal, no progress."""
