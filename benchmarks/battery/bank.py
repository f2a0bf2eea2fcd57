"""Write the bank of clean networks' scores that verdicts are held against, and what it says of the other networks.

    python -m benchmarks.battery.train --only '[rv]*-clean-*' --threads 1
    python -m benchmarks.battery.judge --only '[rv]*-clean-*' --recipes auto:repair=false --threads 1
    python -m benchmarks.battery.bank

The bank holds the clean models of Fashion-MNIST for which `is_calibration` holds; the page is about all the others.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import markdown
from benchmarks.battery import provenance, reach, rows
from benchmarks.battery.calibration import is_calibration
from benchmarks.battery.catalogue import all_models, is_held_out
from benchmarks.battery.rows import Row
from benchmarks.battery.train import cache_folder
from worker.sanitizer.reference_bank import FILE_NAME, false_positive_rate

NUM_IMAGES, SEED = 500, 0
# The rate of false alarms that the targets are about.
WANTED_RATE = 0.10
BANK = provenance.ROOT / "worker" / "sanitizer" / FILE_NAME
PAGE = provenance.ROOT / "benchmarks" / "results" / "bank.md"


def main(arguments: list[str] | None = None) -> int:
    """Write both files; return 2 where no clean model of the bank was judged."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--library", default=None, help="versions whose verdicts are the same, as 1,2; default: that of the newest row"
    )
    parser.add_argument("--bank", type=Path, default=BANK)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    judged = [row for row in rows.finished(rows.read(cache_folder() / rows.FILE_NAME)).values() if _counts(row)]
    library = options.library or (judged[-1]["library"] if judged else "")
    judged = _one_of_each_model([row for row in judged if row["library"] in library.split(",")])
    bank = [row for row in judged if row["attack"] is None and is_calibration(row["model"])]
    if not bank:
        print("no clean model of the bank was judged", file=sys.stderr)
        return 2
    options.bank.write_text(json.dumps(_document(bank, library), indent=2) + "\n")
    options.page.write_text(_page(bank, [row for row in judged if not is_calibration(row["model"])], library))
    # A cache of its own, so that both can be checked, or written again, without the one that it came from.
    kept = options.page.with_suffix("") / rows.FILE_NAME
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("".join(rows.line(row) for row in judged))
    print(options.bank, options.page, kept, sep="\n")
    return 0


def _counts(row: Row) -> bool:
    """A verdict comes before a repair, so that it is the same with and without one."""
    return (
        row["recipe"].partition(":")[0] == "auto"
        and row["dataset"] == "fashion_mnist"
        and not is_held_out(row["model"])
        and row["score"] is not None
        and (row["num_images"], row["seed"]) == (NUM_IMAGES, SEED)
    )


def _one_of_each_model(judged: Sequence[Row]) -> list[Row]:
    """The newest of pruning alone where there is one, so that what clean models lost is about one recipe."""
    found = {row["model"]: row for row in sorted(judged, key=lambda row: row["recipe"] != "auto")}
    return [found[config.name] for config in all_models() if config.name in found]


def _document(bank: Sequence[Row], library: str) -> dict[str, object]:
    return {
        "written_by": "python -m benchmarks.battery.bank",
        "dates": sorted({row["date"] for row in bank}),
        "library": library,
        "scores": {row["model"]: row["score"] for row in bank},
    }


def _page(bank: Sequence[Row], others: Sequence[Row], library: str) -> str:
    scores = [row["score"] for row in bank]
    # A small bank knows no lower rate than its own.
    alarm = max(WANTED_RATE, false_positive_rate(float("inf"), scores))

    def rate(row: Row) -> float:
        return false_positive_rate(row["score"], scores)

    lines = []
    for what, some in (
        ("clean", [row for row in others if row["attack"] is None]),
        ("backdoored, 10 and 5 %", [row for row in others if row["attack"] is not None and row["rate"] >= 0.05]),
    ):
        if some:
            alarms = sum(rate(row) <= alarm for row in some)
            lines.append([what, str(len(some)), reach.rate_text(alarms, len(some))])
    listed = []
    for row in sorted([*bank, *others], key=lambda row: -row["score"]):
        place = ["yes", "-"] if is_calibration(row["model"]) else ["no", f"{100 * rate(row):.0f} %"]
        lost = f"{100 * (row['accuracy_before'] - row['accuracy_after']):.2f}"
        listed.append([row["model"], *place, row["verdict"], f"{row['score']:.3f}", row["recipe"], lost])
    dates = sorted({row["date"] for row in [*bank, *others]})
    commits = ", ".join(sorted({f"`{row['commit']}`" for row in [*bank, *others]}))
    machines = "; ".join(sorted({row["machine"] for row in [*bank, *others]}))
    span = " to ".join(dict.fromkeys([dates[0], dates[-1]]))
    judged = f"{len(bank) + len(others)} networks judged {span} at commit {commits}, library `{library}`."
    rule = (
        f"(1 + those of the bank that score so high) / (1 + all of the bank), so at least {100 / (1 + len(bank)):.0f} %"
    )
    parts = [
        "# The bank of clean networks\n",
        f"Written by `python -m benchmarks.battery.bank`; not to be edited. {judged} Machine: {machines}.\n",
        f"{len(bank)} clean networks are the bank. The false-positive rate of a score is {rule}.\n",
        "## Networks that are not in the bank\n",
        *markdown.table(["kind", "networks", f"rate at most {100 * alarm:.0f} %"], lines),
        "\n## Every score\n",
        *markdown.table(["model", "in the bank", "rate", "verdict", "score", "recipe", "ACC lost"], listed),
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main())
