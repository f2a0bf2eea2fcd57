"""Networks that carry their own graph go the whole way over HTTP, and come back to where they came from."""

import pytest
import torch

from benchmarks.trips import runtimes, suspect
from benchmarks.trips.trip import difference
from tests.e2e.conftest import Bundle, assert_delivered

SPEC = {"recipe": "prune", "inputs": "clean", "repair": False}


@pytest.fixture
def stack(make_stack):
    return make_stack().start_up()


def test_programs_are_sanitized_over_http_and_load_where_they_came_from(stack, tmp_path):
    client, bundle = stack.client, Bundle(stack.client)
    jobs, uploads = {"safetensors": bundle.submit(**SPEC)}, {}
    for kind in ("pt2", "onnx"):
        uploads[kind] = suspect.write(kind, tmp_path)
        architecture = {"source": "file", "num_classes": 10, "in_channels": 1}
        model = client.create_model({"architecture": architecture, "input": bundle.model["input"]})
        client.upload_model(model["id"], uploads[kind])
        jobs[kind] = client.submit(
            model["id"], bundle.clean["id"], triggered_dataset_id=bundle.triggered["id"], spec=SPEC
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


def pruned(report):
    """The silenced channels by the layer's place in the graph."""
    return [layer["pruned_channels"] for layer in report["layers"]]
