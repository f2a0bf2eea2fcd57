"""The rows that a table may use, and which jobs it would take to fill it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.battery import rows
from benchmarks.battery.catalogue import ModelConfig, all_models, is_held_out
from benchmarks.battery.rows import Row
from benchmarks.battery.train import read_record

SEEDS = (0, 1, 2)

Keep = Callable[[ModelConfig], bool]


@dataclass(frozen=True, slots=True)
class Group:
    """The rows of one recipe on some models, and how many jobs the whole group has."""

    rows: tuple[Row, ...]
    num_expected: int

    @property
    def complete(self) -> bool:
        """Whether every job of the group has been judged."""
        return 0 < self.num_expected <= len(self.rows)

    @property
    def coverage(self) -> str:
        """How many of its jobs have been judged, in words."""
        return f"{len(self.rows)} of {self.num_expected}"

    def mean(self, figure: Callable[[Row], float]) -> float:
        """Return the mean of a figure over the rows, of which there must be one."""
        return fmean(figure(row) for row in self.rows)

    def most(self, figure: Callable[[Row], float]) -> float:
        """Return the largest value of a figure."""
        return max(figure(row) for row in self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """All rows of one version of the library.

    Attributes:
        configs: The models that count: all of the catalogue but those whose figures refuse them.
        left_out: The refused models, each with its reason.
        rows: The newest row of each job of those models, in the catalogue's order.
        library: The version of the library.
        num_failed: Jobs of this version whose newest row is a failure.
    """

    configs: tuple[ModelConfig, ...]
    left_out: dict[str, str]
    rows: tuple[Row, ...]
    library: str
    num_failed: int = 0

    def group(self, recipe: str, keep: Keep, *, num_images: int = 500, seeds: Sequence[int] = SEEDS) -> Group:
        """Return the rows of a recipe on the models that `keep` takes; a refused job is left out of both counts."""
        keys = {config.key for config in self.configs if keep(config)}
        seen = [
            row
            for row in self.rows
            if (row["recipe"], row["num_images"]) == (recipe, num_images)
            and row["key"] in keys
            and row["seed"] in seeds
        ]
        judged = tuple(row for row in seen if row["refused"] is None)
        return Group(judged, len(keys) * len(seeds) - (len(seen) - len(judged)))

    def recipes(self) -> list[str]:
        """Return the recipes that have rows, `auto` first."""
        return sorted({row["recipe"] for row in self.rows}, key=lambda name: (name != "auto", name))

    def values(self, key: str) -> list[Any]:
        """Return the different values of a field, sorted."""
        return sorted({row[key] for row in self.rows})


def load(folder: Path, library: str | None = None, configs: Iterable[ModelConfig] | None = None) -> Board:
    """Return the board of one version of the library, by default that of the newest row.

    Raises:
        ValueError: there are no rows of it.
    """
    every = rows.read(folder / rows.FILE_NAME)
    if library is None and every:
        library = every[-1]["library"]
    chosen = [row for row in every if row["library"] == library]
    if library is None or not chosen:
        raise ValueError("there are no judgements" + (f" of library {library!r}" if library else ""))
    fit, left_out = [], {}
    for config in all_models() if configs is None else configs:
        record = read_record(folder, config)
        if record is None or record["admitted"]:
            fit.append(config)
        else:
            left_out[config.name] = record["reason"]
    # Of one job, run again on another device or with other defaults of the specification, the newest row counts.
    newest = {(row["key"], row["recipe"], row["seed"], row["num_images"]): row for row in chosen}
    order = {config.key: place for place, config in enumerate(fit)}
    judged = [row for row in newest.values() if row["error"] is None and row["key"] in order]
    judged.sort(key=lambda row: (order[row["key"]], row["recipe"], row["seed"]))
    num_failed = sum(row["error"] is not None for row in newest.values())
    return Board(
        configs=tuple(fit), left_out=left_out, rows=tuple(judged), library=library, num_failed=num_failed
    )  # fmt: skip


def planted(*rates: float) -> Keep:
    """Return the rule that takes the backdoored models of Fashion-MNIST with one of these poisoning rates.

    Those of held-out attacks stand apart: see `held_out`.
    """
    return lambda config: (
        config.attack is not None
        and config.rate in rates
        and config.dataset == "fashion_mnist"
        and not held_out(config)
    )


def held_out(config: ModelConfig) -> bool:
    """Take the models of attacks that nothing was tuned on."""
    return is_held_out(config.name)


def clean(config: ModelConfig) -> bool:
    """Take the clean models of Fashion-MNIST."""
    return config.attack is None and config.dataset == "fashion_mnist"


def of_data(dataset: str, *, is_planted: bool) -> Keep:
    """Return the rule that takes the backdoored or the clean models of one data set."""
    return lambda config: config.dataset == dataset and (config.attack is not None) == is_planted


def accuracy_lost(row: Row) -> float:
    """Return ACC before minus ACC after."""
    return float(row["accuracy_before"] - row["accuracy_after"])


def attack_success(row: Row) -> float:
    """Return the worst trigger's ASR after."""
    return float(row["attack_success_after"])


def robust_gap(row: Row) -> float:
    """Return ACC after minus the worst trigger's RA after."""
    return float(row["accuracy_after"] - row["robust_accuracy_after"])


def der(row: Row) -> float:
    """Return the worst trigger's DER."""
    return float(row["der"])
