import base64
import hashlib
import json
import os

import pytest

from service import jobs
from service.tables import JobRow

ENDED_ONLY = ("report", "report.html", "figures", "figures/curve", "checkpoint")
PNG = b"\x89PNG\r\n\x1a\n"


def test_a_job_is_accepted_polled_and_read(any_api, refused):
    body = any_api.job_body()
    answer = any_api.http.post("/v1/jobs", json=body)
    job = answer.json()
    assert (answer.status_code, job["kind"], job["state"], job["attempt"]) == (202, "sanitize", "queued", 0)
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert answer.headers["retry-after"]
    assert job["spec"]["criterion"] == "linf"
    assert job["spec"]["selection"] == {
        "kind": "accuracy_budget",
        "max_accuracy_drop": 0.02,
        "num_points": 24,
        "max_fraction": 0.5,
        "max_recall_drop": None,
    }
    assert (job["progress"], job["error"], job["started_at"]) == (None, None, None)
    assert any_api.http.get(job["links"]["self"]).json() == job

    claim = any_api.claim(job)
    jobs.heartbeat(any_api.sessions, claim, lease_seconds=60, progress=("sweep", 3, 24))
    running = any_api.http.get(job["links"]["self"])
    assert running.headers["retry-after"]
    assert running.json()["state"] == "running"
    assert (running.json()["phase"], running.json()["progress"]) == ("sweep", {"done": 3, "total": 24})
    assert running.json()["started_at"].endswith("Z")

    for path in ENDED_ONLY:
        refused(any_api.http.get(f"/v1/jobs/{job['id']}/{path}"), 409, "job_not_finished")


def previewed(any_api, safetensors):
    model = any_api.model(safetensors(b"weights"))
    clean = any_api.dataset(safetensors(b"images"))
    return any_api.http.post(f"/v1/datasets/{clean['id']}/preview", json={"model_id": model["id"]}), model, clean


def test_a_preview_is_a_job_whose_report_is_what_it_found(any_api, refused, safetensors):
    answer, model, clean = previewed(any_api, safetensors)
    job = answer.json()
    assert (answer.status_code, job["kind"], job["state"]) == (202, "preview", "queued")
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["model_id"], job["clean_dataset_id"]) == (model["id"], clean["id"])
    refused(any_api.http.delete(f"/v1/datasets/{clean['id']}"), 409, "resource_in_use")

    claim = any_api.claim(job)
    assert claim.kind == "preview"
    assert jobs.succeed(any_api.sessions, claim, report_json='{"kind": "preview"}')
    done = any_api.http.get(f"/v1/jobs/{job['id']}").json()
    assert set(done["links"]) == {"self", "cancel", "report"}
    for accept in ("application/json", "text/html"):
        found = any_api.http.get(done["links"]["report"], headers={"Accept": accept})
        assert found.json() == {"kind": "preview"}
    refused(any_api.http.get(f"/v1/jobs/{job['id']}/checkpoint"), 404, "checkpoint_not_found")
    refused(any_api.http.get(f"/v1/jobs/{job['id']}/report.html"), 404, "page_not_found")
    assert any_api.http.get(f"/v1/jobs/{job['id']}/figures").json()["items"] == []


def test_a_preview_needs_a_clean_set_and_a_model(api, refused, safetensors):
    _, model, clean = previewed(api, safetensors)
    post = api.http.post
    refused(post("/v1/datasets/nothing/preview", json={"model_id": model["id"]}), 404, "dataset_not_found")
    refused(post(f"/v1/datasets/{clean['id']}/preview", json={"model_id": "nothing"}), 404, "model_not_found")
    refused(post(f"/v1/datasets/{clean['id']}/preview", json={}), 422, "invalid_request")
    triggered = api.dataset(safetensors(b"t"), kind="triggered")
    path = f"/v1/datasets/{triggered['id']}/preview"
    document = refused(post(path, json={"model_id": model["id"]}), 422, "wrong_dataset_kind")
    assert document["detail"].startswith("a preview needs a clean data set")


def test_a_hint_is_sent_after_the_commit(api):
    job = api.job()
    assert len(list((api.settings.queue_dir / "messages").iterdir())) == 1
    assert jobs.get(api.sessions, "local", job["id"]).sent_at is not None


def test_a_broker_that_is_away_leaves_the_job_to_the_reaper(api):
    messages = api.settings.queue_dir / "messages"
    messages.rmdir()
    messages.write_text("not a folder")
    job = api.job()
    assert job["state"] == "queued"
    assert jobs.get(api.sessions, "local", job["id"]).sent_at is None
    assert jobs.reap(api.sessions, resend_after_seconds=60, max_attempts=3) == [job["id"]]


def test_a_job_needs_resources_that_are_there_and_ready(any_api, refused, safetensors):
    body = any_api.job_body()
    nothing = "0" * 26
    post = any_api.http.post
    refused(post("/v1/jobs", json=body | {"model_id": f"mdl_{nothing}"}), 404, "model_not_found")
    refused(post("/v1/jobs", json=body | {"model_id": "\u00fc"}), 404, "model_not_found")
    refused(post("/v1/jobs", json=body | {"clean_dataset_id": f"dst_{nothing}"}), 404, "dataset_not_found")
    refused(post("/v1/jobs", json=body | {"triggered_dataset_id": f"dst_{nothing}"}), 404, "dataset_not_found")
    refused(post("/v1/jobs", json=body | {"model_id": any_api.model()["id"]}), 409, "model_not_ready")
    refused(post("/v1/jobs", json=body | {"clean_dataset_id": any_api.dataset()["id"]}), 409, "dataset_not_ready")
    triggered = any_api.dataset(safetensors(b"t"), kind="triggered", target_class=10)["id"]
    refused(post("/v1/jobs", json=body | {"clean_dataset_id": triggered}), 422, "wrong_dataset_kind")
    clean = body["clean_dataset_id"]
    refused(post("/v1/jobs", json=body | {"triggered_dataset_id": clean}), 422, "wrong_dataset_kind")
    refused(post("/v1/jobs", json=body | {"triggered_dataset_id": triggered}), 422, "target_class_out_of_range")
    for inputs in ("triggered", "difference"):
        refused(post("/v1/jobs", json=body | {"spec": {"inputs": inputs}}), 422, "triggered_dataset_required")
    assert any_api.http.get("/v1/jobs").json()["items"] == []


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"inputs": "clean"},
        {"inputs": "synthetic"},
        {"recipe": "prune", "inputs": "synthetic_difference"},
        {"recipe": "clp", "inputs": "triggered"},  # this recipe does not look at `inputs`
        {"recipe": "paper", "inputs": "difference"},
    ],
)
def test_trigger_samples_are_asked_for_only_where_they_guide(api, spec):
    body = api.job_body() | {"spec": spec}
    assert body.get("triggered_dataset_id") is None
    assert api.http.post("/v1/jobs", json=body).status_code == 202


@pytest.mark.parametrize(
    "spec",
    [
        {"max_rounds": 0},
        {"max_rounds": 10**30},
        {"max_rounds": None},
        {"prune": "no such thing"},
        {"recipe": "prune", "prune": False},
        {"prune": False, "selection": {"kind": "fixed_fraction", "fraction": 0.1}},
        {"recipe": "judge", "compare": ["judge"]},
        {"criterion": "l0"},
        {"surprise": 1},
        {"seed": -1},
        {"seed": 2**63},
        {"selection": {"kind": "fixed_fraction", "fraction": 1}},
        {"selection": {"kind": "fixed_fraction"}},
        {"selection": {"max_accuracy_drop": "NaN"}},
        {"scope": []},
        {"device": "tpu"},
    ],
)
def test_a_bad_bound_is_refused_now_not_an_hour_later(api, refused, spec):
    refused(api.http.post("/v1/jobs", json=api.job_body(spec=spec)), 422, "invalid_request")


def test_each_selection_is_understood(api):
    for selection in ({"kind": "fixed_fraction", "fraction": 0.1}, {"kind": "robust_deviations", "k": 3.0}):
        assert api.job(spec={"selection": selection})["spec"]["selection"] == selection
    assert api.job(spec={"scope": ["layer1.0.conv1"]})["spec"]["scope"] == ["layer1.0.conv1"]


def test_a_list_of_jobs_can_be_narrowed_to_a_state(any_api, refused):
    made = [any_api.job() for _ in range(3)]
    any_api.http.post(made[1]["links"]["cancel"])
    listed = any_api.http.get("/v1/jobs", params={"state": "queued", "limit": 1}).json()
    assert [item["id"] for item in listed["items"]] == [made[2]["id"]]
    rest = any_api.http.get("/v1/jobs", params={"state": "queued", "cursor": listed["next_cursor"]}).json()
    assert [item["id"] for item in rest["items"]] == [made[0]["id"]]
    refused(any_api.http.get("/v1/jobs", params={"state": "lost"}), 422, "invalid_request")


def test_cancelling_is_said_once_and_meant(api, refused):
    waiting, running = api.job(), api.job()
    claim = api.claim(running)
    assert api.http.post(waiting["links"]["cancel"]).json()["state"] == "cancelled"
    assert api.http.post(waiting["links"]["cancel"]).status_code == 202
    assert api.http.post(running["links"]["cancel"]).json()["state"] == "cancelling"
    jobs.finish_cancelled(api.sessions, claim)
    for path in ENDED_ONLY:
        refused(api.http.get(f"/v1/jobs/{waiting['id']}/{path}"), 409, "job_cancelled")
    finished = api.succeeded_job()
    refused(api.http.post(finished["links"]["cancel"]), 409, "job_already_finished")


def test_a_failed_job_says_why(api, refused):
    job = api.job()
    jobs.fail(api.sessions, api.claim(job), "architecture_mismatch", "five tensors differ")
    view = api.http.get(job["links"]["self"]).json()
    assert view["error"] == {"code": "architecture_mismatch", "message": "five tensors differ"}
    for path in ENDED_ONLY:
        document = refused(api.http.get(f"/v1/jobs/{job['id']}/{path}"), 409, "job_failed")
        assert "five tensors differ" in document["detail"]


def test_the_error_of_an_attempt_that_will_be_repeated_is_not_the_jobs(api):
    job = api.job()
    jobs.release(api.sessions, api.claim(job), "worker_crashed", "crash")
    assert api.http.get(job["links"]["self"]).json()["error"] is None


def test_what_a_job_uses_cannot_be_deleted_until_it_ended(any_api, refused):
    job = any_api.job()
    paths = [f"/v1/models/{job['model_id']}", f"/v1/datasets/{job['clean_dataset_id']}"]
    for path in paths:
        assert job["id"] in refused(any_api.http.delete(path), 409, "resource_in_use")["detail"]
    any_api.http.post(job["links"]["cancel"])
    for path in paths:
        assert any_api.http.delete(path).status_code == 204
    assert any_api.http.get(job["links"]["self"]).json()["model_id"] == job["model_id"], "history stays"


def test_results_outlive_the_resources(any_api):
    job = any_api.succeeded_job(b"sanitized")
    any_api.http.delete(f"/v1/models/{job['model_id']}")
    assert any_api.http.get(f"/v1/jobs/{job['id']}/checkpoint").content == b"sanitized"


def test_the_report_is_what_the_worker_wrote(any_api):
    text = '{"schema_version": 1, "seconds": {"all": 1.50}}'
    job = any_api.succeeded_job(report_json=text)
    view = any_api.http.get(job["links"]["self"]).json()
    answer = any_api.http.get(view["links"]["report"])
    assert (answer.text, answer.headers["content-type"]) == (text, "application/json")


CHECKPOINT = os.urandom(5 * 1024 * 1024 + 3)


def test_the_checkpoint_comes_whole_with_its_length_name_and_digests(any_api):
    job = any_api.succeeded_job(CHECKPOINT)
    path = f"/v1/jobs/{job['id']}/checkpoint"
    answer = any_api.http.get(path)
    sha256 = hashlib.sha256(CHECKPOINT)
    assert answer.status_code == 200
    assert answer.content == CHECKPOINT
    assert answer.headers["content-length"] == str(len(CHECKPOINT))
    assert answer.headers["etag"] == f'"{sha256.hexdigest()}"'
    assert answer.headers["repr-digest"] == f"sha-256=:{base64.b64encode(sha256.digest()).decode()}:"
    assert answer.headers["content-disposition"] == 'attachment; filename="suspect.sanitized.safetensors"'
    head = any_api.http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert {name: head.headers[name] for name in ("etag", "content-length", "accept-ranges")} == {
        name: answer.headers[name] for name in ("etag", "content-length", "accept-ranges")
    }


@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=4194300-4194309", 4194300, 4194310),
        ("bytes=100-", 100, None),
        ("bytes=-5", -5, None),
        ("bytes=-99999999", 0, None),
        ("bytes=0-99999999", 0, None),
    ],
)
def test_one_range_is_served(api, header, start, stop):
    job = api.succeeded_job(CHECKPOINT)
    answer = api.http.get(f"/v1/jobs/{job['id']}/checkpoint", headers={"Range": header})
    expected = CHECKPOINT[start:stop]
    assert answer.status_code == 206
    assert answer.content == expected
    first = start if start >= 0 else len(CHECKPOINT) + start
    assert answer.headers["content-range"] == f"bytes {first}-{first + len(expected) - 1}/{len(CHECKPOINT)}"


def test_ranges_and_conditions_follow_the_rules(api, refused):
    job = api.succeeded_job(b"0123456789")
    path = f"/v1/jobs/{job['id']}/checkpoint"

    def get(**headers):
        return api.http.get(path, headers={name.replace("_", "-"): value for name, value in headers.items()})

    answer = get(Range="bytes=10-")
    assert "begins within the file" in refused(answer, 416, "range_not_satisfiable")["detail"]
    assert answer.headers["content-range"] == "bytes */10"
    refused(get(Range="bytes=-0"), 416, "range_not_satisfiable")
    for ignored in ("bytes=0-1,3-4", "bytes=5-2", "lines=1-2", "bytes=a-b", "bytes=-"):
        assert get(Range=ignored).status_code == 200
    etag = get().headers["etag"]
    for match in (etag, f'"x", W/{etag}', "*"):
        unchanged = get(If_None_Match=match)
        assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", etag)
    assert get(If_None_Match='"x"').status_code == 200
    assert get(If_Range=etag, Range="bytes=0-1").status_code == 206
    assert get(If_Range='"x"', Range="bytes=0-1").status_code == 200


@pytest.mark.parametrize(
    ("name", "filename"),
    [
        ('../../etc/"passwd"\r\nX: y', "etc-passwd-X-y.sanitized.safetensors"),
        ("r\u00e9seau 1", "r-seau-1.sanitized.safetensors"),
        ("x" * 200, "x" * 100 + ".sanitized.safetensors"),
    ],
)
def test_a_name_is_made_safe_for_a_header_and_a_folder(api, safetensors, name, filename):
    model = api.model(safetensors(b"weights"), name=name)
    job = api.succeeded_job(model_id=model["id"])
    answer = api.http.get(f"/v1/jobs/{job['id']}/checkpoint")
    assert answer.headers["content-disposition"] == f'attachment; filename="{filename}"'


def test_a_model_without_a_name_is_called_by_its_id(api, zipped):
    model = api.model(zipped("m/data.pkl"), name=None)
    job = api.succeeded_job(model_id=model["id"])
    answer = api.http.get(f"/v1/jobs/{job['id']}/checkpoint")
    assert f'"{model["id"]}.sanitized.pth"' in answer.headers["content-disposition"]


def test_a_list_does_not_read_the_reports(api):
    api.succeeded_job()
    (row,) = jobs.list_jobs(api.sessions, "local", limit=10)
    assert "report" not in row.__dict__
    assert hasattr(JobRow, "report")


def test_figures_are_listed_and_served_in_the_reports_order(any_api, refused):
    job = any_api.succeeded_job(figures={"curve": PNG + b"1", "bias": PNG + b"2"})
    view = any_api.http.get(job["links"]["self"]).json()
    listed = any_api.http.get(view["links"]["figures"]).json()["items"]
    assert [(item["name"], item["title"], item["size"]) for item in listed] == [
        ("curve", "About curve", 9),
        ("bias", "About bias", 9),
    ]
    for item, data in zip(listed, (PNG + b"1", PNG + b"2"), strict=True):
        answer = any_api.http.get(item["links"]["content"])
        assert (answer.status_code, answer.content) == (200, data)
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["etag"] == f'"{item["sha256"]}"' == f'"{hashlib.sha256(data).hexdigest()}"'
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
        assert answer.headers["content-disposition"] == f'inline; filename="{item["name"]}.png"'
        head = any_api.http.head(item["links"]["content"])
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(data)))
        unchanged = any_api.http.get(item["links"]["content"], headers={"If-None-Match": answer.headers["etag"]})
        assert unchanged.status_code == 304
    for name in ("nothing", "%00", "CURVE", "curve%0a", "x" * 65, "%ed%a0%80"):
        refused(any_api.http.get(f"/v1/jobs/{job['id']}/figures/{name}"), 404, "figure_not_found")
    refused(any_api.http.get(f"/v1/jobs/job_{'0' * 26}/figures/curve"), 404, "job_not_found")


def test_a_figure_belongs_to_its_job(any_api, refused):
    any_api.succeeded_job(figures={"curve": PNG})
    other = any_api.succeeded_job()
    assert any_api.http.get(f"/v1/jobs/{other['id']}/figures").json() == {"items": [], "next_cursor": None}
    refused(any_api.http.get(f"/v1/jobs/{other['id']}/figures/curve"), 404, "figure_not_found")


def test_the_report_is_a_page_for_whoever_asks_for_one(any_api, safetensors):
    hostile = '"><script>alert(1)</script>'
    model = any_api.model(safetensors(b"weights"), name=hostile)
    report = json.dumps({"schema_version": 1, "layers": [{"name": hostile, "num_channels": 3, "pruned_channels": []}]})
    job = any_api.succeeded_job(report_json=report, figures={"curve": PNG}, model_id=model["id"])
    view = any_api.http.get(job["links"]["self"]).json()
    page = any_api.http.get(view["links"]["report_page"])
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "script-src" not in page.headers["content-security-policy"]
    assert "<script" not in page.text
    assert page.text.count("&lt;script&gt;") >= 2
    assert base64.b64encode(PNG).decode() in page.text

    browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
    asked = any_api.http.get(view["links"]["report"], headers={"Accept": browser})
    assert (asked.text, asked.headers["vary"]) == (page.text, "Accept")


@pytest.mark.parametrize(
    "accept",
    [
        *(
            "*/*",
            "application/json",
            "application/json, text/html;q=0.9",
            "text/html;q=0",
            "text/html, application/json",
        ),
        *("text/html;q=..", "", "text/plain", "text/html;q=0.2;x=1, application/json;q=0.3"),
    ],
)
def test_the_report_is_json_unless_html_is_liked_better(api, accept):
    job = api.succeeded_job()
    answer = api.http.get(f"/v1/jobs/{job['id']}/report", headers={"Accept": accept})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["vary"] == "Accept"
