"""`lustrate export`, done by the numerical library in a process of its own: the client itself has no torch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# The user's folder is not searched for the library itself (-P): it may well have a `worker` of its own.
COMMAND = (
    "-P",
    "-c",
    "import sys; from worker.sanitizer.export_command import main; sys.exit(main(sys.argv[1:], 'lustrate export'))",
)
_ROOT = Path(__file__).resolve().parent.parent.parent


def export(arguments: Sequence[str]) -> int:
    """Run the export with these arguments. Returns its exit status."""
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), environment.get("PYTHONPATH")]))
    return subprocess.run([sys.executable, *COMMAND, *arguments], env=environment, check=False).returncode  # noqa: S603
