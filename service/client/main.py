"""The `lustrate` command."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from service.client import show
from service.client.api import ApiError, Client, default_url
from service.client.demo import demo
from service.client.export import export
from service.client.up import migrate, up
from service.client.work import Inputs, preview, sanitize

MAX_LISTED = 100
COLUMNS = {
    "models": ("id", "name", "state", "format", "size", "created_at"),
    "datasets": ("id", "name", "kind", "state", "format", "size", "created_at"),
    "jobs": ("id", "state", "phase", "attempt", "created_at", "finished_at"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0 done, 1 refused or failed, 2 wrong usage, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["export"]:
        return export(arguments[1:])
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except ApiError as error:
        sys.stderr.write(f"lustrate: {error}\n")
        return 1
    except (OSError, ValueError) as error:
        sys.stderr.write(f"lustrate: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lustrate", description="Take the backdoor out of a neural network.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("up", help="run the embedded service: API, worker and beat")
    command.add_argument("--data-dir", type=Path, default=Path(os.environ.get("LUSTRATE_DATA_DIR", "data")))
    command.add_argument("--host", default=os.environ.get("LUSTRATE_HOST", "127.0.0.1"))
    port = int(os.environ.get("LUSTRATE_PORT", "8000"))
    command.add_argument("--port", type=int, default=port, help="0 takes a free one")
    command.set_defaults(run=lambda options: up(options.data_dir, host=options.host, port=options.port))

    command = commands.add_parser("demo", help="sanitize the bundled suspect with an embedded service")
    command.add_argument("--output-dir", type=Path, default=Path("demo-output"))
    command.add_argument("--data-dir", type=Path, help="of the service; a temporary one by default")
    command.set_defaults(run=lambda options: demo(options.output_dir, options.data_dir))

    command = commands.add_parser("migrate", help="bring the database up to date")
    command.set_defaults(run=lambda _: migrate(os.environ))

    command = _add_remote(commands, "sanitize", "upload, sanitize, download", _sanitize)
    command.add_argument("checkpoint", type=Path, metavar="MODEL")
    command.add_argument("--meta", type=Path, required=True, help="JSON: name, architecture, input")
    command.add_argument("--clean", type=Path, required=True, help="clean labelled images")
    command.add_argument("--triggered", type=Path, help="trigger samples, to measure the attack with")
    command.add_argument("--target-class", type=int, help="where the trigger leads, if you know")
    command.add_argument("--spec", type=Path, help="JSON: what to do; all of it has defaults")
    command.add_argument("-o", "--output", type=Path, required=True)

    command = _add_remote(commands, "preview", "upload, and look at the clean set before a job", _preview)
    command.add_argument("checkpoint", type=Path, metavar="MODEL")
    command.add_argument("--meta", type=Path, required=True, help="JSON: name, architecture, input")
    command.add_argument("--clean", type=Path, required=True, help="clean labelled images")

    # Its options are those of the library, which is asked before this parser is.
    commands.add_parser("export", help="from your model's code to a file to upload", add_help=False)

    for what in COLUMNS:
        nested = commands.add_parser(what, help=f"list {what}").add_subparsers(required=True, metavar="COMMAND")
        command = _add_remote(nested, "list", f"list {what}", _list)
        command.set_defaults(what=what)
    for name, text in (("job", "show a job"), ("cancel", "cancel a job"), ("report", "print a job's report")):
        command = _add_remote(commands, name, text, _show)
        command.add_argument("id", metavar="ID")
        command.set_defaults(method=name)
        if name == "report":
            command.add_argument("--figures", type=Path, metavar="DIR", help="also fetch the figures, PNG files")
    return parser


def _add_remote(commands: Any, name: str, text: str, run: Any) -> argparse.ArgumentParser:  # noqa: ANN401
    command: argparse.ArgumentParser = commands.add_parser(name, help=text)
    command.add_argument("--url", default=default_url(), help="of the service (LUSTRATE_URL)")
    command.set_defaults(run=run)
    return command


def _sanitize(options: argparse.Namespace) -> int:
    console = Console()
    inputs = Inputs(
        checkpoint=options.checkpoint,
        metadata=_read_json(options.meta),
        clean=options.clean,
        triggered=options.triggered,
        target_class=options.target_class,
        spec=None if options.spec is None else _read_json(options.spec),
    )
    with Client(options.url) as client:
        results = sanitize(client, inputs, options.output, console)
    show.print_report(console, results.report)
    console.print(f"sanitized checkpoint: {results.checkpoint_path}\nreport:               {results.report_path}")
    return 0


def _preview(options: argparse.Namespace) -> int:
    """Exit with 1 if a job with these files would be refused."""
    console = Console()
    inputs = Inputs(checkpoint=options.checkpoint, metadata=_read_json(options.meta), clean=options.clean)
    with Client(options.url) as client:
        found = preview(client, inputs, console)
    show.print_preview(console, found)
    return int(any(finding["severity"] == "refusal" for finding in found["findings"]))


def _list(options: argparse.Namespace) -> int:
    with Client(options.url) as client:
        records = list(islice(client.list(options.what), MAX_LISTED))
    show.print_records(Console(), records, COLUMNS[options.what])
    return 0


def _show(options: argparse.Namespace) -> int:
    with Client(options.url) as client:
        record = {"job": client.job, "cancel": client.cancel, "report": client.report}[options.method](options.id)
        if options.method == "report" and options.figures is not None:
            for path in client.download_figures(options.id, options.figures):
                sys.stderr.write(f"{path}\n")
    sys.stdout.write(json.dumps(record, indent=2) + "\n")
    return 0


def _read_json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: must hold a JSON object")  # noqa: TRY004 - the value of a file, not of an argument
    return fields


if __name__ == "__main__":
    sys.exit(main())
