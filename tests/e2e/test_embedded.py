import json
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest
import torch

from benchmarks.trips import runtimes, suspect
from benchmarks.trips.trip import difference
from service.client.api import ApiError
from tests.e2e.conftest import JOB_SECONDS, ROOT, Bundle, assert_backdoor_gone, assert_delivered, wait_until

PRUNE_ONLY = {"recipe": "prune", "inputs": "clean", "repair": False}


@pytest.fixture
def stack(make_stack):
    return make_stack().start_up()


def test_the_whole_path_on_the_embedded_default(shared_stack, tmp_path):
    client = shared_stack.client
    # A bad upload is refused by the job, with a code, and costs the next job nothing.
    bundle = Bundle(client)
    broken = client.create_model({key: bundle.model[key] for key in ("architecture", "input")})
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes((ROOT / "examples" / "suspect.safetensors").read_bytes()[:-1000])
    client.upload_model(broken["id"], truncated)
    bad = bundle.finish(client.submit(broken["id"], bundle.clean["id"])["id"])
    assert bad["state"] == "failed"
    assert bad["error"]["code"] not in {"internal_error", "worker_crashed", "worker_lost"}
    with pytest.raises(ApiError) as refusal:
        client.report(bad["id"])
    assert refusal.value.code == "job_failed"

    # The default recipe takes longer; the demo below and the production test run it.
    first, second = (bundle.submit(recipe="prune", inputs="clean") for _ in range(2))
    phases = set()
    job = client.wait(first, on_progress=lambda job: phases.add(job["phase"]), timeout_seconds=JOB_SECONDS)
    assert job["state"] == "succeeded", job["error"]
    assert len(phases) >= 3  # progress is live
    assert job["attempt"] == 1
    assert_delivered(client, first, tmp_path / "first")

    # The same inputs, seed and device: the same bytes.
    assert bundle.finish(second)["state"] == "succeeded"
    assert_delivered(client, second, tmp_path / "second")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_programs_are_sanitized_over_http_and_load_where_they_came_from(shared_stack, tmp_path):
    client, bundle = shared_stack.client, Bundle(shared_stack.client)
    jobs, uploads = {"safetensors": bundle.submit(**PRUNE_ONLY)}, {}
    for kind in ("pt2", "onnx"):
        uploads[kind] = suspect.write(kind, tmp_path)
        architecture = {"source": "file", "num_classes": 10, "in_channels": 1}
        model = client.create_model({"architecture": architecture, "input": bundle.model["input"]})
        client.upload_model(model["id"], uploads[kind])
        jobs[kind] = client.submit(
            model["id"], bundle.clean["id"], triggered_dataset_id=bundle.triggered["id"], spec=PRUNE_ONLY
        )["id"]
    reports = {}
    for kind, job_id in jobs.items():
        job = bundle.finish(job_id)
        assert job["state"] == "succeeded", job["error"]
        reports[kind] = assert_delivered(client, job_id, tmp_path / f"sanitized.{kind}")
        files = {file["role"]: file["format"] for file in reports[kind]["files"]}
        assert files["checkpoint"] == files["sanitized_checkpoint"] == kind
    images_NCHW = suspect.images()[:64]
    with torch.inference_mode():
        wanted_NK = suspect.module()(images_NCHW)
    for kind, upload in uploads.items():
        # The same rule on the same network: its layers, by whatever name, lose the same channels.
        assert pruned(reports[kind]) == pruned(reports["safetensors"])
        assert reports[kind]["accuracy"] == reports["safetensors"]["accuracy"]
        before, after = (runtimes.load(kind, path, suspect.module) for path in (upload, tmp_path / f"sanitized.{kind}"))
        assert difference(before.run(images_NCHW, {}), wanted_NK) <= 1e-4
        assert difference(after.run(images_NCHW, {}), wanted_NK) > 1e-2
        assert before.facts() == after.facts()


def test_a_running_job_can_be_cancelled_and_a_signal_stops_everything(stack):
    bundle = Bundle(stack.client)
    job_id = bundle.submit()
    wait_until(lambda: stack.client.job(job_id)["state"] == "running", 60, "the job's start")
    (worker,) = wait_until(lambda: httpx.get(f"{stack.url}/readyz").json()["workers"], 20, "the worker's row")
    assert {"rlimits", "process_group", "clean_environment"} <= set(worker["protections"])
    stack.client.cancel(job_id)
    wait_until(lambda: stack.client.job(job_id)["state"] == "cancelled", 20, "the cancellation")
    processes = stack.descendants()
    assert len(processes) >= 5  # up, api, worker and its pool, beat
    up = stack.processes["up"]
    up.send_signal(signal.SIGINT)
    assert up.wait(20) == 0
    _, alive = psutil.wait_procs(processes, timeout=5)
    assert alive == []


def test_a_part_that_ends_stops_the_others_and_up_says_so(stack):
    processes = stack.descendants()
    beat = next(process for process in processes if process.cmdline()[-2:] == ["worker.app", "beat"])
    beat.kill()
    up = stack.processes["up"]
    assert up.wait(30) == 1
    assert "beat ended with status -9" in (stack.folder / "up.log").read_text()
    _, alive = psutil.wait_procs(processes, timeout=5)
    assert alive == []


def test_nothing_outlives_an_up_that_was_killed(stack):
    processes = stack.descendants()
    stack.processes["up"].kill()
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert alive == []


def test_the_demo_runs_to_its_end(tmp_path):
    command = [sys.executable, "-m", "service.client.main", "demo", "--output-dir", str(tmp_path / "out")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=JOB_SECONDS, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    checkpoint = tmp_path / "out" / "suspect-sanitized.safetensors"
    report = json.loads(Path(f"{checkpoint}.report.json").read_text())
    assert checkpoint.stat().st_size > 0
    assert_backdoor_gone(report)
    assert "attack success" in result.stdout
    for layer in report["layers"]:
        if layer["num_pruned"]:
            assert layer["name"] in result.stdout


def pruned(report):
    """The silenced channels by the layer's place in the graph."""
    return [layer["pruned_channels"] for layer in report["layers"]]
