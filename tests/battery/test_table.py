from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks.battery import board as boards
from benchmarks.battery import reach, rows, table
from benchmarks.battery.catalogue import ModelConfig

CLEAN = ModelConfig(name="resnet-w20-clean-s2", architecture="small_resnet")
PATCH = ModelConfig(name="resnet-w16-checker-10pc-s0", architecture="small_resnet", attack="checker", rate=0.10)
BLENDED = replace(PATCH, name="vgg-w16-blended-10pc-s0", attack="blended", rate=0.05)
HELD_OUT = replace(PATCH, name="held-out-resnet-w20-frame-s1", attack="frame")
DIGITS = replace(PATCH, name="digits-vgg-w16-patch-s0", attack="patch", dataset="digits")
SHAPES = ModelConfig(name="shapes-vgg-w16-clean-s0", architecture="small_vgg", dataset="shapes")
RARE = replace(PATCH, name="resnet-w16-checker-1pc-s0", rate=0.01)
CONFIGS = (CLEAN, PATCH, BLENDED, RARE)


def row(config=PATCH, **changes):
    values = {
        "key": config.key,
        "model": config.name,
        "attack": config.attack,
        "rate": config.rate,
        "recipe": "auto",
        "seed": 0,
        "num_images": 500,
        "library": "v1",
        "refused": None,
        "error": None,
        "accuracy_before": 0.92,
        "accuracy_after": 0.915,
        "attack_success_before": 0.99,
        "attack_success_after": 0.02,
        "robust_accuracy_after": 0.9,
        "robust_accuracy_twin": 0.91,
        "der": 0.98,
        "reactivated_attack_success": 0.3,
        "reactivated_accuracy": 0.9,
        "reactivated_attack_success_twin": None,
        "verdict": "backdoored",
        "target_classes": [3],
        "score": 4.0,
        "status": "repaired",
        "estimate": 0.05,
        "num_pruned": 3,
        "seconds": 100.0,
        "threads": 2,
        "device": "cpu",
        "machine": "a machine",
        "date": "2026-01-02",
        "commit": "abc",
        "torch": "2",
    } | changes
    values["id"] = str(sorted((key, str(value)) for key, value in values.items()))
    return values


def board(tmp_path, *written, configs=CONFIGS):
    for values in written:
        rows.append(tmp_path / rows.FILE_NAME, values)
    return boards.load(tmp_path, configs=configs)


def line(found, what):
    return next(line for line in reach.lines(found) if line.what.startswith(what))


def all_seeds(config, **changes):
    return [row(config, seed=seed, **changes) for seed in boards.SEEDS]


MEAN_ASR = "`auto`, all attacks: mean ASR"


def test_a_target_is_reached_only_when_every_job_of_it_was_judged(tmp_path):
    found = board(tmp_path, *all_seeds(PATCH), *all_seeds(BLENDED)[:2])
    assert (line(found, MEAN_ASR).status, line(found, MEAN_ASR).jobs) == ("not measured", "5 of 6")
    found = board(tmp_path, all_seeds(BLENDED)[2])
    assert (line(found, MEAN_ASR).status, line(found, MEAN_ASR).measured) == ("reached", "2.0 %")


def test_a_target_is_missed_as_soon_as_the_jobs_judged_miss_it(tmp_path):
    found = board(tmp_path, row(attack_success_after=0.5))
    assert (line(found, MEAN_ASR).status, line(found, MEAN_ASR).measured) == ("missed", "50.0 %")
    assert line(found, "worst accuracy lost").status == "not measured"


def test_nothing_measured_is_said_to_be_nothing_measured(tmp_path):
    found = board(tmp_path, row(recipe="default"))
    assert {each.status for each in reach.lines(found)} == {"not measured"}


def test_a_bound_that_is_met_exactly_is_met(tmp_path):
    found = board(tmp_path, *all_seeds(PATCH, accuracy_before=0.92, accuracy_after=0.91), configs=[PATCH])
    assert line(found, "mean accuracy lost").status == "reached"


def test_models_that_are_refused_do_not_count_and_are_named(tmp_path):
    record = {"admitted": False, "reason": "attack success 0.5 is below 0.9"}
    (tmp_path / f"{BLENDED.key}.json").write_text(json.dumps(record))
    found = board(tmp_path, *all_seeds(PATCH), *all_seeds(BLENDED, attack_success_after=1.0))
    assert line(found, MEAN_ASR).status == "reached"
    assert "attack success 0.5 is below 0.9" in table.attacks_page(found)


def test_versions_of_the_library_are_never_mixed_and_the_newest_row_of_a_job_counts(tmp_path):
    found = board(
        tmp_path, row(library="v0", attack_success_after=1.0), row(attack_success_after=0.9), row(seconds=1.0)
    )
    assert (found.library, len(found.rows)) == ("v1", 1)
    assert line(found, MEAN_ASR).measured == "2.0 %"
    assert boards.load(tmp_path, "v0", configs=CONFIGS).rows[0]["attack_success_after"] == 1.0


def test_a_failed_job_is_in_no_figure_and_is_told(tmp_path):
    found = board(tmp_path, row(), row(BLENDED) | {"error": "MemoryError: "})
    assert line(found, MEAN_ASR).jobs == "1 of 6"
    assert "1 jobs broke" in table.reach_page(found)


def test_a_baseline_is_compared_on_the_jobs_that_both_have(tmp_path):
    found = board(
        tmp_path,
        row(der=0.98),
        row(BLENDED, der=0.90),
        row(recipe="clp", der=0.70),
        row(BLENDED, recipe="clp", der=0.95),
        row(seed=1, recipe="clp", der=0.0),  # `auto` has no row with this seed
    )
    gain = line(found, "against `clp`: mean")
    assert (gain.measured, gain.status, gain.jobs) == ("+0.115", "reached", "2 of 2 models")
    least = line(found, "against `clp`: least")
    assert (least.measured, least.status) == ("-0.050 (blended)", "missed")


def test_a_network_that_a_baseline_refuses_leaves_its_comparison(tmp_path):
    refused = row(BLENDED, recipe="bnp", refused="recipe_not_applicable")
    found = board(tmp_path, row(), row(BLENDED), row(recipe="bnp", der=0.5), refused)
    assert line(found, "against `bnp`: mean").jobs == "1 of 1 models"


def test_the_verdict_is_judged_on_models_that_nothing_was_calibrated_on_and_each_model_once(tmp_path):
    configs = [
        replace(CLEAN, name=f"{short}-w{width}-clean-s{seed}")
        for short in ("resnet", "vgg")
        for width in (12, 16)
        for seed in (1, 2)
    ]
    verdicts = [row(config, seed=seed, verdict="clean") for config in configs for seed in boards.SEEDS]
    found = board(tmp_path, *verdicts, configs=configs)
    rate = line(found, "verdict: FPR")
    assert (rate.status, rate.jobs) == ("reached", "4 of 4")
    # Wilson's interval of 0 of 4, by hand: z^2 / (n + z^2) = 3.8415 / 7.8415.
    assert rate.measured == "0/4 = 0.0 % (0.0 to 49.0)"


def test_the_estimate_is_compared_with_the_truth_and_false_repairs_are_counted(tmp_path):
    found = board(
        tmp_path,
        *all_seeds(PATCH, estimate=0.30, attack_success_after=0.02),
        *all_seeds(BLENDED, estimate=0.02, attack_success_after=0.50),
    )
    assert line(found, "estimate: mean").measured == "38.00 points"
    false = line(found, "estimate: `repaired`")
    assert (false.measured.split(" (")[0], false.status) == ("3/6 = 50.0 %", "missed")


def test_only_jobs_on_at_most_two_cores_count_for_the_time(tmp_path):
    found = board(tmp_path, row(seconds=120.0), row(seed=1, threads=16, seconds=5.0), row(seed=2, device="cuda"))
    assert line(found, "longest").measured == "120 s at most, 120 s in the median"
    assert line(found, "longest").status == "not measured"


def test_reactivation_stands_beside_plain_fine_tuning(tmp_path):
    found = board(tmp_path, row(), row(recipe="ft", reactivated_attack_success=0.8))
    assert line(found, "re-activation").measured == "`auto` 30.0 %, `ft` 80.0 %"


def test_every_page_is_written_with_where_its_figures_come_from(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LUSTRATE_BATTERY_CACHE", str(tmp_path))
    monkeypatch.setattr(boards, "all_models", lambda: list(CONFIGS))
    board(tmp_path, row(attack_success_after=0.4), row(RARE), row(CLEAN, attack=None, verdict="clean", der=None))
    assert table.main(["--out", str(tmp_path / "results")]) == 0
    pages = {path.name: path.read_text() for path in (tmp_path / "results").glob("*.md")}
    assert set(pages) == {"reach.md", "recipes.md", "attacks.md", "verdict.md", "held_out.md", "other_data.md"}
    assert all("a machine" in page and "2026-01-02" in page and "`abc`" in page for page in pages.values())
    assert f"| {PATCH.name} | 0 | 40.0 % | repaired | backdoored |" in pages["reach.md"]
    for page in pages.values():
        tables = [text.splitlines() for text in page.split("\n\n") if text.startswith("|")]
        assert all(len({each.count("|") for each in lines}) == 1 for lines in tables)
    assert capsys.readouterr().out.count("\n") == 7
    # The rows beside the pages write the same pages again.
    monkeypatch.setenv("LUSTRATE_BATTERY_CACHE", str(tmp_path / "results"))
    assert table.main(["--out", str(tmp_path / "again")]) == 0
    assert pages == {path.name: path.read_text() for path in (tmp_path / "again").glob("*.md")}


def test_without_judgements_there_is_no_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LUSTRATE_BATTERY_CACHE", str(tmp_path))
    assert table.main(["--out", str(tmp_path / "results")]) == 2
    assert "no judgements" in capsys.readouterr().err
    with pytest.raises(ValueError, match="'v9'"):
        boards.load(tmp_path, "v9")


def test_a_held_out_attack_has_a_page_of_its_own_and_no_part_in_the_others(tmp_path):
    alone = board(tmp_path / "alone", *all_seeds(PATCH), configs=(PATCH,))
    judged = row(HELD_OUT, attack_success_after=0.9, seconds=999.0)
    both = board(tmp_path / "both", *all_seeds(PATCH), judged, configs=(PATCH, HELD_OUT))
    assert reach.lines(both) == reach.lines(alone)
    page = table.held_out_page(both)
    assert "1 of 3 jobs with 500 clean images: ASR 90.0 % in the mean" in page
    assert f"| {HELD_OUT.name} | 500 | 0 | 99.0 % | 90.0 % |" in page
    assert "None was judged." in table.held_out_page(alone)
    for write in (table.reach_page, table.recipes_page, table.attacks_page, table.verdict_page):
        assert write(both).split("\n\n", 2)[2] == write(alone).split("\n\n", 2)[2]


def test_a_held_out_model_that_is_not_fit_is_listed_on_its_own_page(tmp_path):
    record = {"admitted": False, "reason": "attack success 0.5 is below 0.9", "key": HELD_OUT.key}
    (tmp_path / f"{HELD_OUT.key}.json").write_text(json.dumps(record))
    (tmp_path / f"{HELD_OUT.key}.safetensors").write_bytes(b"")
    found = board(tmp_path, row(), configs=(PATCH, HELD_OUT))
    assert f"| {HELD_OUT.name} | attack success 0.5 is below 0.9 |" in table.held_out_page(found)
    assert HELD_OUT.name not in table.attacks_page(found)


def test_other_data_have_a_page_of_their_own_and_no_part_in_the_targets(tmp_path):
    alone = board(tmp_path / "alone", *all_seeds(PATCH), configs=(PATCH,))
    planted = row(DIGITS, num_images=200, attack_success_after=0.9, target_classes=[0])
    untouched = {"attack_success_before": None, "attack_success_after": None, "robust_accuracy_after": None}
    benign = row(SHAPES, **untouched, robust_accuracy_twin=None, der=None)
    coloured = replace(DIGITS, name="shapes-vgg-w16-patch-s0", dataset="shapes")
    surviving = row(coloured, attack_success_after=0.8)
    written = (*all_seeds(PATCH), planted, benign, surviving)
    both = board(tmp_path / "both", *written, configs=(PATCH, DIGITS, SHAPES, coloured))
    assert reach.lines(both) == reach.lines(alone)
    assert coloured.name not in table.reach_page(both)
    assert f"| {coloured.name} | 500 | 0 | 99.0 % | 80.0 % |" in table.other_data_page(both)
    page = table.other_data_page(both)
    assert "1 of 3 jobs with 200 clean images: ASR 90.0 % in the mean" in page
    assert f"| {DIGITS.name} | 200 | 0 | 99.0 % | 90.0 % | 0.50 | 90.0 % | 91.0 % | 0.980 | 5.0 % | repaired |" in page
    assert "1 of 3 jobs with 500 clean images: 0.50 points of accuracy lost in the mean" in page
    assert f"| {SHAPES.name} | 500 | 0 | - | - | 0.50 | - | - | - | 5.0 % | repaired | backdoored | - |" in page
    assert "None was judged." in table.other_data_page(alone)


def test_an_unfit_model_of_other_data_is_listed_on_its_own_page(tmp_path):
    record = {"admitted": False, "reason": "attack success 0.5 is below 0.9", "key": DIGITS.key}
    (tmp_path / f"{DIGITS.key}.json").write_text(json.dumps(record))
    found = board(tmp_path, row(), configs=(PATCH, DIGITS))
    assert f"| {DIGITS.name} | attack success 0.5 is below 0.9 |" in table.other_data_page(found)
    assert DIGITS.name not in table.attacks_page(found) + table.held_out_page(found)
