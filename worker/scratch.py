"""A worker's scratch folder: locked while the worker lives, so that what a killed one left is known and removed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

LOCK = "lock"


class Scratch:
    """One process's private folder under `root`; gone when closed, or when a later worker finds its lock free."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        # One at a time: a folder that is not locked yet must not look like one that is not locked any more.
        with (root / LOCK).open("a") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            for folder in root.iterdir():
                if folder.is_dir():
                    _remove_if_left(folder)
            self.path = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=root))
            self._lock = (self.path / LOCK).open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _remove_if_left(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError, BlockingIOError), (folder / LOCK).open("r") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
