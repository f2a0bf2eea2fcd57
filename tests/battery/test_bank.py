"""The bank is made of judged clean networks that were set aside for it; the others are what the page is about."""

from __future__ import annotations

import json

import pytest

from benchmarks.battery import bank, rows
from tests.battery.test_table import row as made

IN_BANK = {"resnet-w16-clean-s0": 0.8, "vgg-w16-clean-s1": 0.9, "resnet-w12-clean-s1": 0.7}
OTHERS = {"vgg-w16-clean-s0": 0.85, "resnet-w16-clean-s1": 0.1}


def row(model, score, **changes):
    config = next(config for config in bank.all_models() if config.name == model)
    return made(config, dataset="fashion_mnist", score=score, verdict="suspicious", **changes)


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.setenv("LUSTRATE_BATTERY_CACHE", str(tmp_path))

    def write(*judged, arguments=()):
        for values in judged:
            rows.append(tmp_path / rows.FILE_NAME, values)
        code = bank.main(["--bank", str(tmp_path / "bank.json"), "--page", str(tmp_path / "bank.md"), *arguments])
        return code, tmp_path

    return write


def test_only_networks_set_aside_make_the_bank_and_only_others_are_counted(written):
    judged = [row(model, score, recipe="auto:repair=false") for model, score in (IN_BANK | OTHERS).items()]
    backdoored = row("vgg-w16-patch-10pc-s0", 2.0)
    held_out = row("held-out-vgg-w20-frame-s1", 3.0)
    code, folder = written(
        row("vgg-w16-clean-s0", 0.85, recipe="auto", accuracy_after=0.5), *judged, backdoored, held_out
    )
    assert code == 0
    assert json.loads((folder / "bank.json").read_text())["scores"] == IN_BANK
    page = (folder / "bank.md").read_text()
    # Of three in the bank no rate is below 25 %, so that is where the page counts alarms.
    assert "| kind | networks | rate at most 25 % |" in page
    assert "| clean | 2 | 0/2 = 0.0 %" in page
    in_bank = bank.is_calibration("vgg-w16-patch-10pc-s0")
    assert ("| backdoored, 10 and 5 % | 1 | 1/1 = 100.0 %" in page) is not in_bank
    assert "| vgg-w16-clean-s0 | no | 50 % | suspicious | 0.850 | auto:repair=false | 0.50 |" in page
    assert "| vgg-w16-clean-s1 | yes | - | suspicious | 0.900 | auto:repair=false | 0.50 |" in page
    kept = rows.read(folder / "bank" / rows.FILE_NAME)
    assert {values["model"] for values in kept} == {*IN_BANK, *OTHERS, backdoored["model"]}


def test_of_several_versions_the_newest_row_of_each_network_counts(written):
    judged = [row(model, score, library="one", recipe="auto:repair=false") for model, score in IN_BANK.items()]
    newer = row("vgg-w16-clean-s1", 0.5, library="two", recipe="auto:repair=false")
    assert written(*judged, newer)[0] == 0
    _, folder = written()
    assert json.loads((folder / "bank.json").read_text())["scores"] == {"vgg-w16-clean-s1": 0.5}
    code, folder = written(arguments=("--library", "one,two"))
    assert code == 0
    assert json.loads((folder / "bank.json").read_text())["scores"] == IN_BANK | {"vgg-w16-clean-s1": 0.5}


@pytest.mark.parametrize(
    "changes", [{"recipe": "prune"}, {"num_images": 200}, {"seed": 1}, {"score": None}, {"error": "it broke"}]
)
def test_what_is_no_verdict_of_the_usual_kind_is_left_out(written, capsys, changes):
    values = {"score": 0.8} | changes
    code, folder = written(row("resnet-w16-clean-s0", values.pop("score"), **values))
    assert code == 2
    assert not (folder / "bank.json").exists()
    assert "no clean model" in capsys.readouterr().err
