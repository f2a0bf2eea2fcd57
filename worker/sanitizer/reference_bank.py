"""How clean networks score: what a verdict's score is held against, so that it states a rate of false alarms."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib import resources

FILE_NAME = "reference_bank.json"


def false_positive_rate(score: float, scores: Sequence[float] | None = None) -> float:
    """How often, at most, a clean network scores so high: (1 + those of the bank that do) / (1 + all of the bank).

    On average over banks this bounds the chance for a clean network drawn as those of the bank were: small networks,
    images of one kind. Of another network or other data it says little. Source: conformal prediction (Vovk, Gammerman
    and Shafer, "Algorithmic Learning in a Random World", 2005).

    Args:
        score: Of a verdict.
        scores: Those of the bank's clean networks; None for the bank that comes with the library.
    """
    bank = reference_scores() if scores is None else scores
    return (1 + sum(other >= score for other in bank)) / (1 + len(bank))


@cache
def reference_scores() -> tuple[float, ...]:
    """The scores of the clean networks of the bank, which `benchmarks.battery.bank` writes."""
    document = json.loads(resources.files(__package__).joinpath(FILE_NAME).read_text(encoding="utf-8"))
    return tuple(document["scores"].values())
