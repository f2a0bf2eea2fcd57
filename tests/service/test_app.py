import warnings
from datetime import datetime

import pytest
import sqlalchemy.exc
from fastapi import APIRouter

from service import workers
from service.app import create_from_env


@pytest.fixture
def broken(api):
    """The application with a route that has a bug, and one whose database went away."""
    router = APIRouter()

    @router.get("/bug")
    def bug():
        raise RuntimeError("secret path /etc/x")

    @router.get("/away")
    def away():
        raise sqlalchemy.exc.OperationalError("SELECT", {}, Exception("host db.internal"))

    api.app.include_router(router)
    return api


def test_alive_looks_at_nothing(api):
    assert api.http.get("/healthz").json() == {"status": "alive"}


def test_ready_means_database_and_broker(any_api):
    answer = any_api.http.get("/readyz")
    assert (answer.status_code, answer.json()) == (
        200,
        {"status": "ready", "checks": {"database": "ok", "broker": "ok"}, "workers": []},
    )


def test_ready_says_which_workers_there_are_and_how_their_jobs_are_confined(any_api):
    workers.record(any_api.sessions, "machine:7", ("rlimits", "no_network"))
    answer = any_api.http.get("/readyz")
    (worker,) = answer.json()["workers"]
    assert worker["protections"] == ["rlimits", "no_network"]
    assert worker["seen_at"] == worker["started_at"]
    assert datetime.fromisoformat(worker["seen_at"]).utcoffset() is not None
    assert "machine" not in answer.text


def test_ready_reaches_a_real_redis(connect, postgresql_url, redis_url):
    api = connect(database_url=postgresql_url, broker_url=redis_url)
    assert api.http.get("/readyz").json()["checks"] == {"database": "ok", "broker": "ok"}


def test_not_ready_says_what_is_missing(connect, refused):
    api = connect(broker_url="redis://127.0.0.1:1/0")
    checks = refused(api.http.get("/readyz"), 503, "not_ready")["checks"]
    assert checks["database"].startswith("not migrated")
    assert checks["broker"] == "unreachable (OperationalError)"
    api = connect(database_url="postgresql://nobody@127.0.0.1:1/x")
    answer = api.http.get("/readyz")
    assert refused(answer, 503, "not_ready")["checks"]["database"] == "unreachable (OperationalError)"
    assert "nobody" not in answer.text


def test_starlettes_own_errors_are_problems_too(api, refused):
    refused(api.http.get("/nothing"), 404, "not_found")
    refused(api.http.get("/v1/models/"), 404, "not_found")
    answer = api.http.delete("/v1/jobs")
    refused(answer, 405, "method_not_allowed")


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/v1/jobs", "GET, POST"),
        ("/v1/models/x", "DELETE, GET"),
        ("/v1/models/x/content", "PUT"),
        ("/v1/jobs/x/checkpoint", "GET, HEAD"),
        ("/readyz", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_told_all_that_the_path_takes(api, refused, path, methods):
    answer = api.http.patch(path)
    refused(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == methods


def test_monitors_may_ask_for_the_head_alone(api):
    for path in ("/healthz", "/readyz"):
        assert api.http.head(path).status_code == 200


def test_a_bug_shows_no_traceback(broken, refused):
    answer = broken.http.get("/bug")
    refused(answer, 500, "internal_error")
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text


def test_a_database_that_is_away_is_said_to_be(broken, refused):
    answer = broken.http.get("/away")
    refused(answer, 503, "database_unavailable")
    assert "db.internal" not in answer.text
    assert answer.headers["retry-after"]


def test_the_openapi_document_types_the_report_and_the_problems(api):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        document = api.http.get("/openapi.json").json()
    report = document["paths"]["/v1/jobs/{job_id}/report"]["get"]["responses"]
    told = report["200"]["content"]["application/json"]["schema"]["anyOf"]
    assert [one["$ref"].rpartition("/")[2] for one in told] == ["Report", "Preview"]
    assert report["422"]["content"]["application/json"]["schema"]["$ref"].endswith("/Problem")
    assert "HTTPValidationError" not in document["components"]["schemas"]
    assert api.http.get("/docs").status_code == 200


def test_an_application_is_made_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("LUSTRATE_DATA_DIR", str(tmp_path / "fresh"))
    monkeypatch.setattr("service.logs.configure", lambda: None)
    held = create_from_env().state.resources
    assert held.settings.data_dir == tmp_path / "fresh"
    held.engine.dispose()
