"""One line per event: a constant name and fields, JSON where nobody watches (or text, with LUSTRATE_LOG=text)."""

from __future__ import annotations

import os
import sys

import structlog


def configure() -> None:
    """Set up structlog for this process; programs call it, libraries and tests do not."""
    colours = sys.stderr.isatty()
    watched = colours or os.environ.get("LUSTRATE_LOG") == "text"
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=colours) if watched else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            *([] if watched else [structlog.processors.format_exc_info]),
            renderer,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
