"""Write the tables of `benchmarks/results/` from the judgements in the cache; no figure is typed by hand.

python -m benchmarks.battery.table
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean, median

from benchmarks import markdown
from benchmarks.battery import attacks, provenance, reach, rows
from benchmarks.battery.board import (
    Board,
    Group,
    accuracy_lost,
    attack_success,
    clean,
    der,
    held_out,
    load,
    of_data,
    planted,
)
from benchmarks.battery.calibration import is_calibration
from benchmarks.battery.catalogue import RATES, ModelConfig, is_held_out
from benchmarks.battery.rows import Row
from benchmarks.battery.train import cache_folder

RESULTS = provenance.ROOT / "benchmarks" / "results"
# Above this a backdoor is said to survive.
SURVIVES = 0.10
_NONE = "-"
# Whoever tunes on these models changes this sentence.
_HELD_OUT_NOTE = (
    "No constant of the library was chosen while figures of these models were seen, but for the rule of caps behind a "
    "repair (`@pt2`), which was set while those with a frame, blinds on a residual network and a negative on a plain "
    "one were looked at; blinds and negatives were planted after the other constants."
)
_HELD_OUT_RECIPES = {
    "auto": "`auto`, sent as weights",
    "auto@pt2": "`auto`, sent as an exported program, which can carry activation caps",
    "caps@pt2": "Activation caps alone",
}
_OTHER_DATA = {"digits": "scikit-learn's digits, enlarged", "shapes": "made shapes in colour"}
# Whoever tunes on these models changes this sentence.
_OTHER_DATA_NOTE = (
    "Networks of other images than those that the targets are about, 10 % poisoning; they have no part in "
    "the targets. Digits: 300 images score with 200 clean ones. The round aimed at a class that stands out, the radius "
    "that shrinks, how often masks come, the rule for tiny masks and the images that the repair's anchor asks about "
    "were set while networks of digits were looked at, the heavier anchors and the whole images that stand for "
    "patchworks (version 0.21) while those of shapes were. Shapes: ten things at any place, size, angle and tint "
    "(`benchmarks/battery/shapes.py`), 32 x 32 pixels in colour, 4,500 images score with 500 clean ones; a warp is "
    "left out, since a residual network does not learn it there."
)


def main(arguments: list[str] | None = None) -> int:
    """Write every table; return 2 where there is nothing to write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", default=None, help="version of the library; default: that of the newest row")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    try:
        board = load(cache_folder(), options.library)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    for name, write in _PAGES.items():
        path = options.out / name
        path.write_text(write(board))
        print(path)
    # The rows themselves, so that the pages can be checked, and a later night can go on, without this cache.
    path = options.out / rows.FILE_NAME
    path.write_text("".join(rows.line(row) for row in board.rows))
    print(path)
    return 0


def reach_page(board: Board) -> str:
    """Return the targets beside what was measured, and which backdoors survive."""
    lines = [[line.what, line.wanted, line.measured, line.jobs, line.status] for line in reach.lines(board)]
    survivors = [row for row in board.group("auto", planted(*RATES)).rows if attack_success(row) > SURVIVES]
    survivors.sort(key=attack_success, reverse=True)
    listed = [
        [row["model"], str(row["seed"]), _percent(attack_success(row)), str(row["status"]), str(row["verdict"])]
        for row in survivors
    ]
    return _page(
        "The targets",
        board,
        "Where not said otherwise: 500 clean images, 10 and 5 % poisoning, three seeds. `missed` is said as soon as "
        "the jobs that were judged miss the target; `reached` only when all of them were judged.",
        _table(["what", "to reach", "measured", "jobs", "status"], lines),
        f"## Backdoors that survive `auto` (ASR above {_percent(SURVIVES)})\n",
        _table(["model", "seed", "ASR", "status", "verdict"], listed) if listed else "None of those judged.\n",
    )


def recipes_page(board: Board) -> str:
    """Return each recipe's means, for each number of clean images."""
    parts = []
    head = ["recipe", "jobs", "ASR", "worst", "ACC lost", "worst", "RA", "DER", "`auto` DER higher by"]
    head += ["re-activated", "its ACC", "pruned", "seconds", "longest"]
    for num_images in board.values("num_images"):
        for what, keep in (
            ("10 and 5 % poisoning", planted(0.10, 0.05)),
            ("1 % poisoning", planted(0.01)),
        ):
            lines = [
                [f"`{recipe}`", group.coverage, *_means(group), *_cost(board, recipe, group, keep, num_images)]
                for recipe in board.recipes()
                if (group := board.group(recipe, keep, num_images=num_images)).rows
            ]
            if lines:
                parts += [f"## {num_images} clean images, {what}\n", _table(head, lines)]
        lines = [
            [f"`{recipe}`", group.coverage, *_clean_means(group)]
            for recipe in board.recipes()
            if (group := board.group(recipe, clean, num_images=num_images)).rows
        ]
        if lines:
            parts += [f"## {num_images} clean images, clean models\n"]
            parts += [_table(["recipe", "jobs", "ACC lost", "worst", "pruned", "seconds", "longest"], lines)]
    note = (
        "Recipes that were judged on different jobs are compared in the column `auto` DER higher by, which is the mean "
        "over the jobs that both have. A recipe that refuses a network, such as one without batch norm, has no job of "
        "it. Pruned and seconds are medians."
    )
    return _page("The recipes", board, note, *parts)


def attacks_page(board: Board) -> str:
    """Return one table for each recipe and number of clean images, with a row for each attack and poisoning rate."""
    parts = []
    head = ["attack", "poisoned", "jobs", "ASR before", "ASR", "worst", "ACC lost", "worst", "RA", "RA of twin"]
    head += ["DER", "re-activated", "of twin"]
    for num_images in board.values("num_images"):
        for recipe in board.recipes():
            lines = []
            for attack in attacks.names():
                for rate in RATES:
                    group = board.group(recipe, _one(attack, rate), num_images=num_images)
                    if group.rows:
                        lines.append([attack, f"{100 * rate:.0f} %", group.coverage, *_attack_means(group)])
            if lines:
                parts += [f"## `{recipe}`, {num_images} clean images\n", _table(head, lines)]
    parts += _left_out(board, lambda name: not is_held_out(name) and not _is_of_other_data(name))
    note = (
        "The twin is the clean model of the same architecture: no repair can be expected to exceed its RA, and what "
        "five poisoned samples teach it owes nothing to a backdoor."
    )
    return _page("The attacks", board, note, *parts)


def verdict_page(board: Board) -> str:
    """Return how often the verdict is right, on the models for calibration and, which counts, on the others."""
    lines = []
    for side, calibration in (("not for calibration", False), ("for calibration", True)):
        for what, keep in (
            ("backdoored, 10 and 5 %", planted(0.10, 0.05)),
            ("backdoored, 1 %", planted(0.01)),
            ("clean", clean),
        ):
            group = reach.with_verdict(board, _side(keep, calibration=calibration))
            if group.rows:
                lines.append([side, what, group.coverage, *_verdicts(group)])
    head = ["models", "kind", "jobs", "`backdoored`", "`suspicious` or worse", "`inconclusive`"]
    by_attack = []
    for attack in attacks.names():
        group = reach.with_verdict(board, _side(_attacked(attack), calibration=False))
        if group.rows:
            named = sum(_named(row, attack) for row in group.rows)
            by_attack.append([attack, group.coverage, *_verdicts(group), f"{named}/{len(group.rows)}"])
    scores = [
        [row["model"], "yes" if is_calibration(row["model"]) else "no", str(row["verdict"]), _score(row)]
        for row in reach.with_verdict(board, clean).rows
    ]
    return _page(
        "The verdict",
        board,
        "Each model counts once, with its first seed and 500 clean images; intervals are Wilson's at 95 %. Thresholds "
        "may be calibrated on one half of the models; the other half is what the targets are about.",
        _table(head, lines) if lines else "No job came with a verdict.\n",
        "## By attack, all rates, models not for calibration\n",
        _table(["attack", "jobs", *head[3:], "target class named"], by_attack) if by_attack else "None.\n",
        "## Clean models\n",
        _table(["model", "for calibration", "verdict", "score"], scores) if scores else "None.\n",
    )


def held_out_page(board: Board) -> str:
    """Return what `auto` did to the attacks that nothing was tuned on, model by model."""
    parts = []
    for recipe, what in _HELD_OUT_RECIPES.items():
        for num_images in board.values("num_images"):
            group = board.group(recipe, held_out, num_images=num_images)
            if group.rows:
                parts += [f"## {what}\n", _means_in_words(group, num_images), _model_by_model(group)]
    return _page(
        "Held-out attacks",
        board,
        "Other triggers, another seed and another width than those of the other backdoored models; 10 % poisoning. "
        "Data, architectures and training are the same, and the clean twins are models of the other pages. "
        f"{_HELD_OUT_NOTE}",
        *(parts or ["None was judged.\n"]),
        *_left_out(board, is_held_out),
    )


def other_data_page(board: Board) -> str:
    """Return what was done to networks of the other data sets, model by model."""
    parts = []
    for recipe, dataset, num_images in product(board.recipes(), _OTHER_DATA, board.values("num_images")):
        for kind, is_planted in (("backdoored", True), ("clean", False)):
            group = board.group(recipe, of_data(dataset, is_planted=is_planted), num_images=num_images)
            if group.rows:
                means = _means_in_words(group, num_images) if is_planted else _clean_in_words(group, num_images)
                parts += [f"## `{recipe}`, {_OTHER_DATA[dataset]}, {kind}\n", means, _model_by_model(group)]
    unfit = _left_out(board, _is_of_other_data)
    return _page("Other data", board, _OTHER_DATA_NOTE, *(parts or ["None was judged.\n"]), *unfit)


def _means_in_words(group: Group, num_images: int) -> str:
    asr, worst_asr, lost, worst_lost, robust, effectiveness = _means(group)
    return (
        f"{group.coverage} jobs with {num_images} clean images: ASR {asr} in the mean, {worst_asr} at worst; {lost} "
        f"points of accuracy lost in the mean, {worst_lost} at worst; RA {robust}; DER {effectiveness}.\n"
    )


def _clean_in_words(group: Group, num_images: int) -> str:
    lost, worst_lost, *_ = _clean_means(group)
    return (
        f"{group.coverage} jobs with {num_images} clean images: {lost} points of accuracy lost in the mean, "
        f"{worst_lost} at worst.\n"
    )


def _model_by_model(group: Group) -> str:
    head = ["model", "images", "seed", "ASR before", "ASR", "ACC lost", "RA", "RA of twin", "DER"]
    head += ["estimate", "status", "verdict", "target class named"]
    return _table(head, [_model_line(row) for row in group.rows])


def _model_line(row: Row) -> list[str]:
    is_clean = row["attack"] is None
    return [
        row["model"],
        str(row["num_images"]),
        str(row["seed"]),
        _percent_if_any(row["attack_success_before"]),
        _percent_if_any(row["attack_success_after"]),
        _points(accuracy_lost(row)),
        _percent_if_any(row["robust_accuracy_after"]),
        _percent_if_any(row["robust_accuracy_twin"]),
        _NONE if is_clean else f"{der(row):.3f}",
        _percent_if_any(row["estimate"]),
        str(row["status"]),
        str(row["verdict"]),
        _NONE if is_clean else "yes" if _named(row, row["attack"]) else "no",
    ]


_PAGES: dict[str, Callable[[Board], str]] = {
    "reach.md": reach_page,
    "recipes.md": recipes_page,
    "attacks.md": attacks_page,
    "verdict.md": verdict_page,
    "held_out.md": held_out_page,
    "other_data.md": other_data_page,
}


def _is_of_other_data(name: str) -> bool:
    return name.partition("-")[0] in _OTHER_DATA


def _left_out(board: Board, keep: Callable[[str], bool]) -> list[str]:
    """The models of a page that training found unfit, each with the reason."""
    lines = [[name, reason] for name, reason in board.left_out.items() if keep(name)]
    return ["## Models that are not fit to measure with\n", _table(["model", "reason"], lines)] if lines else []


def _page(title: str, board: Board, note: str, *parts: str) -> str:
    dates = board.values("date")
    span = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    commits = ", ".join(f"`{commit}`" for commit in board.values("commit"))
    judged = f"{len(board.rows)} jobs judged {span} at commit {commits} (+: with changes that are not in it)"
    with_what = f"library `{board.library}`, torch {', '.join(board.values('torch'))}"
    facts = [f"{judged}, {with_what}.", f"Machine: {'; '.join(board.values('machine'))}."]
    if board.num_failed:
        facts.append(f"**{board.num_failed} jobs broke and are in no figure.**")
    head = (
        f"# {title}\n\nWritten by `python -m benchmarks.battery.table`; not to be edited. {' '.join(facts)}\n\n{note}\n"
    )
    return "\n".join([head, *parts])


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(markdown.table(head, lines)) + "\n"


def _means(group: Group) -> list[str]:
    return [
        _percent(group.mean(attack_success)),
        _percent(group.most(attack_success)),
        _points(group.mean(accuracy_lost)),
        _points(group.most(accuracy_lost)),
        _percent(group.mean(lambda row: row["robust_accuracy_after"])),
        f"{group.mean(der):.3f}",
    ]


def _cost(board: Board, recipe: str, group: Group, keep: Callable[[ModelConfig], bool], num_images: int) -> list[str]:
    pairs = reach.paired(board, recipe, keep, num_images)
    gain = f"{fmean(der(ours) - der(theirs) for ours, theirs in pairs):+.3f}" if pairs and recipe != "auto" else _NONE
    return [
        gain,
        _percent(group.mean(lambda row: row["reactivated_attack_success"])),
        _percent(group.mean(lambda row: row["reactivated_accuracy"])),
        *_work(group),
    ]


def _clean_means(group: Group) -> list[str]:
    return [_points(group.mean(accuracy_lost)), _points(group.most(accuracy_lost)), *_work(group)]


def _work(group: Group) -> list[str]:
    seconds = [row["seconds"] for row in group.rows]
    pruned = median(row["num_pruned"] for row in group.rows)
    return [f"{pruned:g}", f"{median(seconds):.0f}", f"{max(seconds):.0f}"]


def _attack_means(group: Group) -> list[str]:
    asr, worst_asr, lost, worst_lost, robust, effectiveness = _means(group)
    return [
        _percent(group.mean(lambda row: row["attack_success_before"])),
        asr,
        worst_asr,
        lost,
        worst_lost,
        robust,
        _mean_of(group, "robust_accuracy_twin"),
        effectiveness,
        _mean_of(group, "reactivated_attack_success"),
        _mean_of(group, "reactivated_attack_success_twin"),
    ]


def _mean_of(group: Group, key: str) -> str:
    values = [row[key] for row in group.rows if row[key] is not None]
    return _percent_if_any(fmean(values) if values else None)


def _verdicts(group: Group) -> list[str]:
    said = [row["verdict"] for row in group.rows]
    return [
        reach.rate_text(said.count("backdoored"), len(said)),
        reach.rate_text(said.count("backdoored") + said.count("suspicious"), len(said)),
        f"{said.count('inconclusive')}/{len(said)}",
    ]


def _named(row: Row, attack: str) -> bool:
    """Return whether the report names every class that a trigger leads to."""
    made = attacks.make(attack)
    targets = range(made.num_classes) if None in made.targets_by_trigger else made.targets_by_trigger
    return set(targets) <= set(row["target_classes"] or ())


def _one(attack: str, rate: float) -> Callable[[ModelConfig], bool]:
    keep = planted(rate)
    return lambda config: keep(config) and config.attack == attack


def _attacked(attack: str) -> Callable[[ModelConfig], bool]:
    keep = planted(*RATES)
    return lambda config: keep(config) and config.attack == attack


def _side(keep: Callable[[ModelConfig], bool], *, calibration: bool) -> Callable[[ModelConfig], bool]:
    return lambda config: keep(config) and is_calibration(config.name) == calibration


def _score(row: Row) -> str:
    return _NONE if row["score"] is None else f"{row['score']:.3f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _percent_if_any(share: float | None) -> str:
    return _NONE if share is None else _percent(share)


def _points(share: float) -> str:
    return f"{100 * share:.2f}"


if __name__ == "__main__":
    sys.exit(main())
