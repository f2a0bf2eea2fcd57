"""Networks whose graph comes from the uploaded file itself: read by our own parsers, never by a foreign loader."""

from worker.sanitizer.programs.program import Program, hold

__all__ = ["Program", "hold"]
