"""What a person sees: live progress of a job, and its report as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

MAX_CHANNELS_SHOWN = 12
MAX_CLASSES_SHOWN = 50

Json = dict[str, Any]


@contextmanager
def live_progress(console: Console) -> Iterator[Callable[[Json], None]]:
    """Yield a callback for `Client.wait`. Where the output is no terminal it prints one line a phase."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("queued", total=None)
        seen = ""

        def on_progress(job: Json) -> None:
            nonlocal seen
            now = job.get("progress") or {}
            where = job["state"] if job["state"] != "running" else job.get("phase") or "running"
            progress.update(bar, description=where, completed=now.get("done") or 0, total=now.get("total"))
            if where != seen and not console.is_terminal:
                console.print(f"  {where}")
            seen = where

        yield on_progress


def print_report(console: Console, report: Json) -> None:
    """Print what the report says in short: the figures before and after, and what was pruned where."""
    figures = Table(title="On images that guided nothing", title_justify="left")
    for column in ("", "before", "after", "images"):
        figures.add_column(column, justify="left" if not column else "right", no_wrap=True)
    accuracy, attack = report["accuracy"], report["attack_success"]
    _add_figure(figures, "clean accuracy", accuracy["before"], accuracy["after"])
    if attack["status"] == "measured":
        _add_figure(figures, "attack success", attack["before"], attack["after"])
        if attack.get("robust_accuracy_after"):
            before, after = attack["robust_accuracy_before"], attack["robust_accuracy_after"]
            _add_figure(figures, "robust accuracy", before, after)
    console.print(figures)
    if attack["status"] != "measured":
        console.print(f"attack success: {attack['status']} ({attack['reason']})")
    console.print(_pruned(report["layers"]))
    _print_judgement(console, report)
    choice = report["choice"]
    console.print(f"{choice['num_pruned']} of {choice['num_in_scope']} channels pruned: {choice['reason']}")
    if report.get("comparison"):
        _print_comparison(console, report["comparison"])
    for warning in report["warnings"]:
        console.print(f"[yellow]warning:[/yellow] {warning}")


def _print_judgement(console: Console, report: Json) -> None:
    verdict, repair = report["verdict"], report["repair"]
    towards = ", ".join(map(str, verdict["target_classes"]))
    console.print(f"verdict: {verdict['verdict']}{f' (class {towards})' if towards else ''}. {verdict['reason']}")
    rate = verdict.get("calibrated_false_positive_rate")
    if rate is not None:
        console.print(f"of clean networks like those of the reference bank at most {rate:.0%} score so high")
    console.print(f"repair: {repair['status'].replace('_', ' ')}. {repair['reason']}")
    caps = report.get("caps") or {}
    if caps.get("status") not in (None, "not_attempted"):
        console.print(f"activation caps: {caps['status'].replace('_', ' ')}. {caps['reason']}")
    estimate = report.get("synthetic_attack_success")
    if estimate is not None:
        before, after = (100 * estimate[key] for key in ("before", "after"))
        low, high = estimate.get("after_low"), estimate.get("after_high")
        interval = "" if low is None or high is None else f", {100 * low:.1f} to {100 * high:.1f}"
        console.print(f"synthesised triggers: {before:.1f} % before, {after:.1f} % after (an estimate{interval})")


def _print_comparison(console: Console, rows: list[Json]) -> None:
    """Recipes side by side, the main one first; below the table why one refused."""
    table = Table(title="Recipes side by side (* an estimate)", title_justify="left")
    for column in ("recipe", "accuracy", "attack success", "robust accuracy", "synthesised*", "pruned", "seconds"):
        table.add_column(column, justify="left" if column == "recipe" else "right")
    for row in rows:
        if row["status"] != "done":
            table.add_row(row["recipe"], row["status"], "", "", "", "", f"{row['seconds']:.1f}")
            continue
        figures = [
            "" if row[key] is None else _percent(row[key]) for key in ("accuracy", "attack_success", "robust_accuracy")
        ]
        synthetic = row["synthetic_attack_success"]
        estimate = "" if synthetic is None else f"{100 * synthetic:.1f} %"
        table.add_row(row["recipe"], *figures, estimate, str(row["num_pruned"]), f"{row['seconds']:.1f}")
    console.print(table)
    for row in rows:
        if row["status"] != "done":
            console.print(f"{row['recipe']} refused ({row['code']}): {escape(row['reason'])}")


def print_preview(console: Console, preview: Json) -> None:
    """Print what a preview found: the classes, the model's accuracy, and everything that needs a look."""
    table = Table(title=f"{preview['num_images']} images, {preview['format']}", title_justify="left")
    for column in ("class", "name", "images", "recall"):
        table.add_column(column, justify="left" if column == "name" else "right")
    for one in preview["classes"][:MAX_CLASSES_SHOWN]:
        recall = "" if one["recall"] is None else f"{100 * one['recall']:.1f} %"
        table.add_row(str(one["class_index"]), escape(one["name"] or ""), str(one["num_images"]), recall)
    console.print(table)
    if preview["accuracy"] is not None:
        console.print(f"the model agrees with {_percent(preview['accuracy'])} of the labels")
    for finding in preview["findings"]:
        colour = "red" if finding["severity"] == "refusal" else "yellow"
        console.print(f"[{colour}]{finding['severity']}[/{colour}] {finding['code']}: {escape(finding['message'])}")
    if not preview["findings"]:
        console.print("nothing stands in the way of a job")


def print_records(console: Console, records: list[Json], columns: tuple[str, ...]) -> None:
    """Print records as a table of some of their fields."""
    table = Table(*columns)
    for record in records:
        table.add_row(*("" if record.get(column) is None else str(record[column]) for column in columns))
    console.print(table)


def _add_figure(table: Table, name: str, before: Json, after: Json) -> None:
    table.add_row(name, _percent(before), _percent(after), str(after["num_images"]))


def _percent(estimate: Json) -> str:
    value, low, high = (100 * estimate[key] for key in ("value", "low", "high"))
    return f"{value:.1f} % ({low:.1f}-{high:.1f})"


def _pruned(layers: list[Json]) -> Table:
    table = Table(title="Pruned", title_justify="left")
    for column in ("layer", "pruned", "of", "channels"):
        table.add_column(column, justify="left" if column in ("layer", "channels") else "right")
    for layer in layers:
        if layer["num_pruned"]:
            shown = ", ".join(map(str, layer["pruned_channels"][:MAX_CHANNELS_SHOWN]))
            more = ", ..." if layer["num_pruned"] > MAX_CHANNELS_SHOWN else ""
            table.add_row(layer["name"], str(layer["num_pruned"]), str(layer["num_channels"]), shown + more)
    return table
