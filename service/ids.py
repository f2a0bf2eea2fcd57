"""Identifiers: a prefix that names the kind, the time in microseconds, and 70 random bits."""

from __future__ import annotations

import re
import secrets
import time

MODEL = "mdl"
DATASET = "dst"
JOB = "job"
BLOB = "blb"

# Crockford's alphabet in lower case: it sorts the same as text in every collation and as the number it stands for.
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_LENGTH = 26
_ID = re.compile(rf"(mdl|dst|job|blb)_[{_ALPHABET}]{{{_LENGTH}}}")


def new_id(prefix: str) -> str:
    """A new identifier. Later ones sort after earlier ones, so a list can page by id alone."""
    number = (time.time_ns() // 1000) << 70 | secrets.randbits(70)
    digits = [_ALPHABET[(number >> (5 * place)) & 31] for place in reversed(range(_LENGTH))]
    return f"{prefix}_{''.join(digits)}"


def is_id(prefix: str, text: str) -> bool:
    """Whether `text` could be an identifier of this kind; anything else never reaches the database."""
    return _ID.fullmatch(text) is not None and text.startswith(f"{prefix}_")
