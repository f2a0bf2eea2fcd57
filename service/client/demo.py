"""`lustrate demo`: the main job on the bundled suspect, against an embedded service that lives as long as the demo."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from service.client import show
from service.client.api import ApiError, Client
from service.client.up import UpError, embedded
from service.client.work import Inputs, sanitize

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
OUTPUT = "suspect-sanitized.safetensors"


def demo(output_dir: Path, data_dir: Path | None = None) -> int:
    """Run the demo. Returns the exit status: 0, or 1 with the reason on stderr.

    Args:
        output_dir: where the results go.
        data_dir: of the service; a temporary one, removed afterwards, if None.
    """
    console, began = Console(), time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop what was started, as after Ctrl-C
    output_dir.mkdir(parents=True, exist_ok=True)
    log_path = output_dir / "service.log"
    try:
        inputs = bundled_inputs()
        with ExitStack() as stack:
            if data_dir is None:
                data_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lustrate-demo-")))
            log = stack.enter_context(log_path.open("w", encoding="utf-8"))
            console.print("starting the embedded service ...")
            service = stack.enter_context(embedded(data_dir, log=log))
            console.print(f"service at {service.url}, its log in {log_path}")
            client = stack.enter_context(Client(service.url))
            results = sanitize(client, inputs, output_dir / OUTPUT, console, on_poll=service.check)
    except (ApiError, UpError, OSError, KeyboardInterrupt) as error:
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
        sys.stderr.write(f"lustrate demo: {reason}\n")
        return 1
    show.print_report(console, results.report)
    console.print(f"sanitized checkpoint: {results.checkpoint_path}\nreport:               {results.report_path}")
    console.print(f"done in {time.monotonic() - began:.0f} s; the service is stopped")
    return 0


def bundled_inputs() -> Inputs:
    """Return the files of `examples/`: the suspect, its clean set, and trigger samples that only score."""
    metadata = json.loads((EXAMPLES / "suspect.json").read_text(encoding="utf-8"))
    triggered = json.loads((EXAMPLES / "triggered.json").read_text(encoding="utf-8"))
    return Inputs(
        checkpoint=EXAMPLES / "suspect.safetensors",
        metadata=metadata,
        clean=EXAMPLES / "clean.npz",
        triggered=EXAMPLES / "triggered.npz",
        target_class=triggered["target_class"],
    )
