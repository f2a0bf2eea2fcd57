"""Where a figure comes from: the machine, the date, the commit, and the very source of the library."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
_LIBRARY = ROOT / "worker" / "sanitizer"


def library_version(folder: Path = _LIBRARY) -> str:
    """Return a digest of the numerical library's source, which changes with any edit, committed or not."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def commit() -> str:
    """Return the short commit, with "+" where the library differs from it, or "unknown" outside a repository."""
    head = _git("rev-parse", "--short=10", "HEAD")
    if head is None:
        return "unknown"
    return head + ("+" if _git("status", "--porcelain", "--", str(_LIBRARY)) else "")


def machine(device: str) -> str:
    """Return the processor, or the graphics processor, in words."""
    if device == "cuda":
        return str(torch.cuda.get_device_name())
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def today() -> str:
    """Return the date in UTC."""
    return datetime.now(UTC).date().isoformat()


def _git(*arguments: str) -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    answer = subprocess.run([git, "-C", str(ROOT), *arguments], check=False, capture_output=True, text=True)
    return answer.stdout.strip() if answer.returncode == 0 else None
