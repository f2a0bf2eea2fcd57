from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.battery import data, judge, rows, train, trial
from benchmarks.battery.catalogue import ModelConfig
from worker.sanitizer import dataset as product
from worker.sanitizer.errors import InvalidSpecError
from worker.sanitizer.spec import AccuracyBudget

CONFIG = ModelConfig(
    name="tiny",
    architecture="small_vgg",
    options={"width": 8, "batch_norm": True},
    attack="two_triggers",
    rate=0.2,
    num_train=600,
    epochs=6,
    batch_size=50,
)


@pytest.fixture(scope="module")
def trained(bars_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASHION_MNIST_DIR", str(bars_folder))
        train.train_into(folder, CONFIG, device=torch.device("cpu"), precision="float32")
    return folder


@pytest.fixture
def cache(bars, trained, tmp_path):  # noqa: ARG001 - the data set
    return Path(shutil.copytree(trained, tmp_path / "cache"))


# The slice of the battery judges the default; what a judge does with a job is told as well by the cheapest.
CHEAP = "prune:inputs=clean"


def plan(**changes):
    values = {"recipes": [CHEAP], "seeds": [0], "num_images": 100, "library": "one"}
    return judge.plan([CONFIG], **(values | changes))


def test_the_clean_set_and_the_scored_images_are_all_images_and_never_meet():
    labels = torch.arange(1000) % 10
    clean, rest = trial.draw(labels, 100, seed=3)
    assert labels[clean].bincount().tolist() == [10] * 10
    assert torch.equal(torch.cat([clean, rest]).sort().values, torch.arange(1000))
    assert torch.equal(clean, trial.draw(labels, 100, seed=3)[0])
    assert not torch.equal(clean, trial.draw(labels, 100, seed=4)[0])


def test_a_clean_set_that_leaves_too_few_images_to_score_with_is_refused():
    with pytest.raises(ValueError, match="100 images would be left"):
        trial.draw(torch.arange(1000) % 10, 900, seed=0)


def test_the_product_is_given_the_clean_images_and_labels_as_they_are(cache, tmp_path):
    prepared = trial.prepare(cache, CONFIG, seed=0, num_images=100)
    prepared.write_clean_set(tmp_path / "clean.npz")
    given = product.read(tmp_path / "clean.npz", in_channels=1)
    whole = data.load(CONFIG.dataset)
    assert torch.equal(given.images_NCHW, whole.test_images_NCHW[prepared.clean])
    assert torch.equal(given.labels_N, whole.test_labels_N[prepared.clean])
    with np.load(tmp_path / "clean.npz") as archive:
        assert sorted(archive.files) == ["images", "labels"]


def test_a_job_is_judged_once_and_its_row_says_everything(cache, capsys):
    assert judge.run(plan(), cache) == 0
    (row,) = rows.read(cache / rows.FILE_NAME)
    assert (row["model"], row["recipe"], row["seed"], row["num_images"]) == ("tiny", CHEAP, 0, 100)
    assert row["num_scored"] == 300
    assert row["attack_success_before"] > 0.9
    assert len(row["attack_success_by_trigger"][1]) == 2
    assert row["attack_success_after"] == max(row["attack_success_by_trigger"][1])
    assert 0 <= row["reactivated_attack_success"] <= 1
    assert row["seconds"] > 0
    assert row["spec"]["seed"] == 0
    assert capsys.readouterr().out.count("\n") == 1
    before = (cache / rows.FILE_NAME).read_bytes()
    assert judge.run(plan(), cache) == 0
    assert (cache / rows.FILE_NAME).read_bytes() == before
    assert capsys.readouterr().out == ""


def test_a_night_that_broke_goes_on_where_it_was(cache):
    jobs = plan(seeds=[0, 1])
    judge.run(jobs[:1], cache)
    judge.run(jobs, cache)
    assert [row["seed"] for row in rows.read(cache / rows.FILE_NAME)] == [0, 1]


def test_a_row_carries_the_commit_that_was_there_when_the_jobs_started(cache, monkeypatch):
    commits = iter(["first", "second", "third"])
    monkeypatch.setattr(judge.provenance, "commit", lambda: next(commits))
    assert judge.run(plan(seeds=[0, 1]), cache) == 0
    assert [row["commit"] for row in rows.read(cache / rows.FILE_NAME)] == ["first", "first"]


def test_everything_that_decides_a_figure_changes_the_id():
    (job,) = plan()
    others = [
        *plan(seeds=[1]),
        *plan(num_images=50),
        *plan(library="two"),
        *plan(recipes=["default:scope=last_conv"]),
        replace(job, config=replace(CONFIG, seed=1)),
    ]
    assert len({job.id, *(other.id for other in others)}) == 1 + len(others)
    assert plan()[0].id == job.id


def test_the_first_seed_of_every_model_comes_before_the_second_of_any():
    other = replace(CONFIG, name="other")
    jobs = judge.plan([CONFIG, other], recipes=["prune:inputs=clean"], seeds=[0, 1], num_images=100, library="one")
    assert [(job.seed, job.config.name) for job in jobs] == [(0, "tiny"), (0, "other"), (1, "tiny"), (1, "other")]


def test_a_job_that_breaks_is_reported_tried_again_and_does_not_stop_the_others(cache, capsys):
    model = cache / f"{CONFIG.key}.safetensors"
    content = model.read_bytes()
    model.write_bytes(content[:100])
    assert judge.run(plan(seeds=[0, 1]), cache) == 2
    assert capsys.readouterr().out.count("failed") == 2
    model.write_bytes(content)
    assert judge.run(plan(), cache) == 0
    assert [row["error"] is None for row in rows.read(cache / rows.FILE_NAME)] == [False, False, True]


def test_what_the_product_refuses_is_an_answer_and_is_not_asked_again(cache, capsys):
    jobs = plan(recipes=['default:scope=["no.such.layer"]'])
    for _ in range(2):
        assert judge.run(jobs, cache) == 0
    (row,) = rows.read(cache / rows.FILE_NAME)
    assert row["refused"]
    assert row["error"] is None
    assert f"refused, {row['refused']}" in capsys.readouterr().out


def test_a_recipe_may_change_fields_of_the_specification():
    spec = judge.make_spec("default:scope=last_conv:order=ascending", seed=4, device="cpu")
    assert (spec.scope, spec.order, spec.seed, spec.device) == ("last_conv", "ascending", 4, "cpu")
    assert judge.make_spec('default:scope=["a","b"]', seed=0, device="cpu").scope == ["a", "b"]
    spec = judge.make_spec("default:selection.max_accuracy_drop=0.05:selection.num_points=9", seed=0, device="cpu")
    assert spec.selection == AccuracyBudget(max_accuracy_drop=0.05, num_points=9)
    with pytest.raises(InvalidSpecError):
        judge.make_spec("no_such_recipe", seed=0, device="cpu")


def test_models_that_are_not_fit_to_measure_with_are_left_out(cache, capsys):
    assert judge.admitted([CONFIG, replace(CONFIG, name="absent")], cache) == []
    lines = capsys.readouterr().out.splitlines()
    assert "tiny: left out" in lines[0]
    assert lines[1] == "absent: left out, not trained"
    record_path = cache / f"{CONFIG.key}.json"
    record_path.write_text(json.dumps(json.loads(record_path.read_text()) | {"admitted": True}))
    assert judge.admitted([CONFIG], cache) == [CONFIG]


def test_listing_runs_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(train.CACHE_VARIABLE, str(tmp_path))
    assert judge.main(["--list", "--only", "digits-*", "--recipes", "default"]) == 0
    assert "not trained" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_pattern_or_a_recipe_that_names_nothing_is_an_error(capsys):
    assert judge.main(["--only", "nothing-like-this"]) == 2
    assert "no model matches" in capsys.readouterr().err
    assert judge.main(["--only", "digits-*", "--recipes", "no_such_recipe"]) == 2


def test_a_model_is_sent_as_a_program_where_the_recipe_says_so(cache):
    (job,) = plan(recipes=["caps@pt2"])
    assert judge.run([job], cache) == 0
    (row,) = rows.read(cache / rows.FILE_NAME)
    assert (row["recipe"], row["refused"]) == ("caps@pt2", None)
    # The network that came back is scored, and trained on, as torch loads it.
    assert (
        row["accuracy_after"] != row["accuracy_before"] or row["attack_success_after"] != row["attack_success_before"]
    )
    assert 0 <= row["reactivated_attack_success"] <= 1
    (weights,) = plan(recipes=["caps"])
    assert judge.run([weights], cache) == 0
    assert rows.read(cache / rows.FILE_NAME)[-1]["refused"] == "recipe_not_applicable"


def test_a_form_that_no_model_is_sent_in_is_refused():
    with pytest.raises(InvalidSpecError, match="keras"):
        judge.form_of("auto@keras")
    assert judge.main(["--recipes", "auto@keras", "--list"]) == 2
