"""Uploaded checkpoints: read within limits, match an architecture, write in the same format."""

from worker.sanitizer.checkpoint.matching import match
from worker.sanitizer.checkpoint.reading import Checkpoint, read

__all__ = ["Checkpoint", "match", "read"]
