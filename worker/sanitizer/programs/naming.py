"""Names for what is added to a program, none of which is taken."""

from __future__ import annotations

import itertools

# Of a name that others are made of.
MAX_CHARACTERS = 200


def fresh(wanted: str, taken: set[str]) -> str:
    """The wanted name, or its end, with a number behind it where it is taken; it is taken from then on."""
    wanted = wanted[-MAX_CHARACTERS:]
    numbered = (f"{wanted}_{number}" for number in itertools.count(1))
    name = next(one for one in itertools.chain([wanted], numbered) if one not in taken)
    taken.add(name)
    return name
