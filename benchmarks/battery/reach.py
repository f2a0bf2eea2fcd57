"""The targets, each beside what was measured; a target counts as reached only when every job of it was judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, median

from benchmarks.battery.board import (
    Board,
    Group,
    Keep,
    accuracy_lost,
    attack_success,
    clean,
    der,
    planted,
    robust_gap,
)
from benchmarks.battery.calibration import is_calibration
from benchmarks.battery.rows import Row
from worker.sanitizer.evaluate import wilson

BASELINES = ("paper", "fine_pruning", "clp", "bnp", "anp", "rnp", "awm", "ft", "ft_sam", "nc_unlearn", "i_bau")
# `auto` is judged with three seeds, each baseline with one, so that nights are enough.
BASELINE_SEEDS = (0,)
# Of several seeds of one model only the first counts for the verdict: its Wilson interval needs independent cases.
VERDICT_SEEDS = (0,)
PRUNE_ONLY = "auto:repair=false"
# The same of a file that can carry activation caps.
PRUNE_AND_CAP = f"{PRUNE_ONLY}@pt2"
PATCH_ATTACKS = ("patch", "checker", "all_to_all", "two_triggers")
MAIN = planted(0.10, 0.05)
# Float noise of differences between figures of four digits.
_TOLERANCE = 1e-9

Unit = Callable[[float], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One target: what is wanted, what was measured, from how many jobs, and whether that is enough."""

    what: str
    wanted: str
    measured: str
    jobs: str
    status: str


def percent(value: float) -> str:
    """Return a share as a percentage."""
    return f"{100 * value:.1f} %"


def points(value: float) -> str:
    """Return a difference of shares in percentage points."""
    return f"{100 * value:.2f} points"


def lines(board: Board) -> list[Line]:
    """Return every target, in the order in which they were set."""
    return [
        *_auto(board),
        *(line for baseline in BASELINES for line in _against(board, baseline)),
        *_fewer_images(board),
        _bound("1 % poisoning: mean ASR", board.group("auto", planted(0.01)), _mean(attack_success), 0.06, percent),
        *_prune_only(board),
        *_verdict(board),
        *_clean_models(board),
        *_estimate(board),
        _time(board),
        _reactivation(board),
    ]


def uncalibrated(keep: Keep) -> Keep:
    """Return the rule that takes those of some models that nothing was calibrated on."""
    return lambda config: keep(config) and not is_calibration(config.name)


def flagged(row: Row) -> bool:
    """Return whether the verdict says that there is a backdoor; a mere suspicion is not enough."""
    return bool(row["verdict"] == "backdoored")


def rate_text(hits: int, total: int) -> str:
    """Return a proportion with its 95 % Wilson interval."""
    share = wilson(hits, total)
    return f"{hits}/{total} = {percent(share.value)} ({100 * share.low:.1f} to {100 * share.high:.1f})"


def paired(board: Board, baseline: str, keep: Keep, num_images: int = 500) -> list[tuple[Row, Row]]:
    """Return the rows of `auto` and of a baseline on the same model with the same clean images."""
    auto = {(row["key"], row["seed"]): row for row in board.group("auto", keep, num_images=num_images).rows}
    theirs = board.group(baseline, keep, num_images=num_images).rows
    return [(auto[row["key"], row["seed"]], row) for row in theirs if (row["key"], row["seed"]) in auto]


def _auto(board: Board) -> list[Line]:
    group = board.group("auto", MAIN)
    return [
        _bound("`auto`, all attacks: mean ASR", group, _mean(attack_success), 0.03, percent),
        _bound("worst ASR", group, _most(attack_success), 0.10, percent),
        _bound("mean accuracy lost", group, _mean(accuracy_lost), 0.01, points),
        _bound("worst accuracy lost", group, _most(accuracy_lost), 0.02, points),
        _bound("ACC - RA, mean", group, _mean(robust_gap), 0.05, points),
        _bound("ACC - RA, worst", group, _most(robust_gap), 0.05, points),
        _floor("mean DER", group, _mean(der), 0.97),
    ]


def _against(board: Board, baseline: str) -> list[Line]:
    pairs = paired(board, baseline, MAIN)
    expected = board.group(baseline, MAIN, seeds=BASELINE_SEEDS).num_expected
    # A model that the baseline has rows of, whatever the seed, counts once.
    num_models = len({theirs["key"] for _, theirs in pairs})
    group = Group(tuple(theirs for _, theirs in pairs), expected)
    jobs, complete = f"{num_models} of {expected} models", num_models >= expected > 0
    what, wanted = f"against `{baseline}`: mean DER higher by", ">= 0.02"
    if not group.rows:
        return [Line(what=what, wanted=wanted, measured="-", jobs=jobs, status="not measured")]
    gain = fmean(der(ours) - der(theirs) for ours, theirs in pairs)
    by_attack = {
        attack: fmean(der(ours) - der(theirs) for ours, theirs in pairs if ours["attack"] == attack)
        for attack in {ours["attack"] for ours, _ in pairs}
    }
    attack, least = min(by_attack.items(), key=lambda item: item[1])
    return [
        Line(what=what, wanted=wanted, measured=f"{gain:+.3f}", jobs=jobs, status=_status(gain >= 0.02, complete)),
        Line(
            what=f"against `{baseline}`: least gain on one attack",
            wanted=">= -0.01",
            measured=f"{least:+.3f} ({attack})",
            jobs=jobs,
            status=_status(least >= -0.01 - _TOLERANCE, complete),
        ),
    ]


def _fewer_images(board: Board) -> list[Line]:
    group = board.group("auto", MAIN, num_images=100)
    return [
        _bound("100 clean images: mean ASR", group, _mean(attack_success), 0.08, percent),
        _bound("100 clean images: mean accuracy lost", group, _mean(accuracy_lost), 0.03, points),
    ]


def _prune_only(board: Board) -> list[Line]:
    lines = []
    for recipe, what in ((PRUNE_ONLY, "prune only"), (PRUNE_AND_CAP, "prune and cap (.pt2)")):
        group = board.group(recipe, lambda config: MAIN(config) and config.attack in PATCH_ATTACKS)
        lines += [
            _bound(f"{what}, patch attacks: mean ASR", group, _mean(attack_success), 0.15, percent),
            _bound(f"{what}, patch attacks: mean accuracy lost", group, _mean(accuracy_lost), 0.02, points),
        ]
    return lines


def _verdict(board: Board) -> list[Line]:
    return [
        _rate(
            "verdict: TPR", with_verdict(board, uncalibrated(MAIN)), flagged, ">= 90.0 %", lambda share: share >= 0.90
        ),
        _rate(
            "verdict: FPR", with_verdict(board, uncalibrated(clean)), flagged, "<= 10.0 %", lambda share: share <= 0.10
        ),
    ]


def with_verdict(board: Board, keep: Keep) -> Group:
    """Return the jobs of `auto` on 500 images that came with a verdict, one of each model."""
    group = board.group("auto", keep, seeds=VERDICT_SEEDS)
    return Group(tuple(row for row in group.rows if row["verdict"] is not None), group.num_expected)


def _clean_models(board: Board) -> list[Line]:
    group = board.group("auto", clean)
    return [
        _bound("clean models through `auto`: mean accuracy lost", group, _mean(accuracy_lost), 0.005, points),
        _bound("clean models through `auto`: worst accuracy lost", group, _most(accuracy_lost), 0.005, points),
    ]


def _estimate(board: Board) -> list[Line]:
    group = board.group("auto", MAIN)
    estimated = Group(tuple(row for row in group.rows if row["estimate"] is not None), group.num_expected)
    # All jobs must have been judged before "at most 5 % of those called repaired" can be reached.
    stated = Group(tuple(row for row in group.rows if row["status"] is not None), group.num_expected)
    called = Group(tuple(row for row in stated.rows if row["status"] == "repaired"), 0)
    false = sum(attack_success(row) > 0.20 for row in called.rows)
    what, wanted = "estimate: `repaired` with true ASR > 20 %", "<= 5.0 %"
    if called.rows:
        status = _status(false / len(called.rows) <= 0.05, stated.complete)
        line = Line(
            what=what, wanted=wanted, measured=rate_text(false, len(called.rows)), jobs=stated.coverage, status=status
        )
    else:
        line = Line(what=what, wanted=wanted, measured="-", jobs=stated.coverage, status="not measured")
    return [
        _bound("estimate: mean distance to the true ASR", estimated, _mean(estimate_error), 0.10, points),
        line,
    ]


def estimate_error(row: Row) -> float:
    """Return how far the re-synthesised attack success lies from the true one."""
    return abs(float(row["estimate"]) - attack_success(row))


def _time(board: Board) -> Line:
    group = board.group("auto", lambda config: MAIN(config) or clean(config))
    small = Group(
        tuple(row for row in group.rows if row["device"] == "cpu" and row["threads"] <= 2), group.num_expected
    )
    text = "-"
    if small.rows:
        seconds = [row["seconds"] for row in small.rows]
        text = f"{max(seconds):.0f} s at most, {median(seconds):.0f} s in the median"
    line = _bound("longest `auto` job on at most 2 cores", small, _most(lambda row: row["seconds"]), 300, _seconds)
    return Line(what=line.what, wanted=line.wanted, measured=text, jobs=line.jobs, status=line.status)


def _reactivation(board: Board) -> Line:
    pairs = paired(board, "ft", MAIN)
    what, wanted = "re-activation by 5 poisoned samples: mean ASR", "stated, beside `ft`"
    coverage = f"{len(pairs)} pairs"
    if not pairs:
        return Line(what=what, wanted=wanted, measured="-", jobs=coverage, status="not measured")
    ours = fmean(row["reactivated_attack_success"] for row, _ in pairs)
    theirs = fmean(row["reactivated_attack_success"] for _, row in pairs)
    text = f"`auto` {percent(ours)}, `ft` {percent(theirs)}"
    twins = [row["reactivated_attack_success_twin"] for row, _ in pairs]
    if None not in twins:
        text += f", never backdoored {percent(fmean(twins))}"
    return Line(what=what, wanted=wanted, measured=text, jobs=coverage, status="no bound")


def _bound(what: str, group: Group, value: Callable[[Group], float], most: float, unit: Unit) -> Line:
    wanted = f"<= {unit(most)}"
    if not group.rows:
        return Line(what=what, wanted=wanted, measured="-", jobs=group.coverage, status="not measured")
    found = value(group)
    met = found <= most + _TOLERANCE
    return Line(
        what=what, wanted=wanted, measured=unit(found), jobs=group.coverage, status=_status(met, group.complete)
    )


def _floor(what: str, group: Group, value: Callable[[Group], float], least: float) -> Line:
    wanted = f">= {least:.2f}"
    if not group.rows:
        return Line(what=what, wanted=wanted, measured="-", jobs=group.coverage, status="not measured")
    found = value(group)
    met = found >= least - _TOLERANCE
    return Line(
        what=what, wanted=wanted, measured=f"{found:.3f}", jobs=group.coverage, status=_status(met, group.complete)
    )


def _rate(
    what: str, group: Group, hit: Callable[[Row], bool], wanted: str, met: Callable[[float], bool]
) -> Line:  # fmt: skip
    if not group.rows:
        return Line(what=what, wanted=wanted, measured="-", jobs=group.coverage, status="not measured")
    hits = sum(hit(row) for row in group.rows)
    status = _status(met(hits / len(group.rows)), group.complete)
    return Line(what=what, wanted=wanted, measured=rate_text(hits, len(group.rows)), jobs=group.coverage, status=status)


def _status(met: bool, complete: bool) -> str:
    """A miss on some of the jobs is a miss; a success on some of them proves nothing yet."""
    if not met:
        return "missed"
    return "reached" if complete else "not measured"


def _mean(figure: Callable[[Row], float]) -> Callable[[Group], float]:
    return lambda group: group.mean(figure)


def _most(figure: Callable[[Row], float]) -> Callable[[Group], float]:
    return lambda group: group.most(figure)


def _seconds(value: float) -> str:
    return f"{value:.0f} s"
