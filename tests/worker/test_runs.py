import hashlib
import json
import time

import pytest
from sqlalchemy import delete, update

from service import blobs, jobs, resources
from service.tables import LOCAL_TENANT, BlobChunkRow, DatasetRow, JobRow, ModelRow
from worker import runs
from worker.runs import Ending
from worker.supervisor import Supervisor

WEIGHTS = b"weights of a network"
SANITIZED = WEIGHTS[::-1]
ARCHITECTURE = {"source": "builtin", "name": "small_resnet", "num_classes": 10, "in_channels": 1, "options": {}}
INPUT = {"height": 28, "width": 28, "mean": [0.5], "std": [0.5]}
SPEC = {"inputs": "clean", "selection": {"kind": "fixed_fraction", "fraction": 0.1}}


@pytest.fixture
def supervisor(tmp_path):
    supervisor = Supervisor(tmp_path / "staging", module="tests.worker.fake_sanitizer")
    yield supervisor
    supervisor.close()


@pytest.fixture
def submit(sqlite_sessions):
    """Submit a job whose clean set says what is to happen."""

    def store(row, created, data):
        sha256, size = blobs.write(sqlite_sessions, LOCAL_TENANT, [data])
        content = resources.Content(sha256=sha256, size=size, format="safetensors")
        resources.record_content(sqlite_sessions, row, LOCAL_TENANT, created.id, content)
        return created.id

    def submit(fault, kind="sanitize"):
        model = resources.create_model(
            sqlite_sessions, LOCAL_TENANT, name=None, architecture=ARCHITECTURE, input_spec=INPUT
        )
        clean = resources.create_dataset(sqlite_sessions, LOCAL_TENANT, name=None, kind="clean", target_class=None)
        return jobs.submit(
            sqlite_sessions,
            LOCAL_TENANT,
            model_id=store(ModelRow, model, WEIGHTS),
            clean_dataset_id=store(DatasetRow, clean, fault.encode()),
            triggered_dataset_id=None,
            spec=SPEC,
            needs_triggered=False,
            kind=kind,
        ).id

    return submit


@pytest.fixture
def run(sqlite_sessions, sqlite_settings, supervisor, tmp_path):
    def run(job_id, **more):
        scratch = tmp_path / "scratch"
        scratch.mkdir(exist_ok=True)
        ending = runs.run(sqlite_sessions, sqlite_settings, supervisor, job_id, "worker-1", scratch=scratch, **more)
        assert {path.name for path in scratch.rglob("*")} <= {"in", "out"}  # the job's files are gone, however it ended
        return ending

    return run


@pytest.fixture
def job(sqlite_sessions):
    return lambda job_id: jobs.get(sqlite_sessions, LOCAL_TENANT, job_id)


def test_a_good_job_is_published_with_its_report(sqlite_sessions, submit, run, job):
    job_id = submit("go well")
    assert run(job_id) is Ending.FINISHED
    row = job(job_id)
    assert row.state == "succeeded"
    assert row.checkpoint_sha256 == hashlib.sha256(SANITIZED).hexdigest()
    assert b"".join(blobs.read(sqlite_sessions, LOCAL_TENANT, row.checkpoint_sha256)) == SANITIZED
    report = json.loads(jobs.report(sqlite_sessions, LOCAL_TENANT, job_id))
    assert report["spec"]["selection"] == {"kind": "fixed_fraction", "fraction": 0.1}


def test_the_figures_are_published_with_the_report(sqlite_sessions, submit, run):
    job_id = submit("a figure")
    assert run(job_id) is Ending.FINISHED
    (figure,) = jobs.figures(sqlite_sessions, LOCAL_TENANT, job_id)
    (listed,) = json.loads(jobs.report(sqlite_sessions, LOCAL_TENANT, job_id))["figures"]
    assert (figure.name, figure.title, figure.media_type) == ("curve", "The curve", "image/png")
    assert (figure.sha256, figure.size) == (listed["sha256"], listed["size_bytes"])
    data = b"".join(blobs.read(sqlite_sessions, LOCAL_TENANT, figure.sha256))
    assert data.startswith(b"\x89PNG")


def test_a_preview_publishes_its_report_and_no_checkpoint(sqlite_sessions, submit, run, job):
    job_id = submit("look well", kind="preview")
    assert run(job_id) is Ending.FINISHED
    assert (job(job_id).state, job(job_id).kind, job(job_id).checkpoint_sha256) == ("succeeded", "preview", None)
    assert json.loads(jobs.report(sqlite_sessions, LOCAL_TENANT, job_id))["num_images"] == 7


def test_a_preview_of_another_shape_is_not_believed(submit, run, job):
    job_id = submit("bad_report", kind="preview")
    assert run(job_id) is Ending.GIVEN_BACK
    assert job(job_id).error_code == "worker_crashed"


def test_a_second_hint_for_a_job_does_nothing(submit, run):
    job_id = submit("go well")
    run(job_id)
    assert run(job_id) is Ending.NOT_CLAIMED
    assert run("job_of_nobody") is Ending.NOT_CLAIMED


def test_a_refusal_fails_the_job_at_once_with_its_code(submit, run, job):
    job_id = submit("refuse")
    assert run(job_id) is Ending.FINISHED
    assert (job(job_id).state, job(job_id).error_code, job(job_id).attempt) == ("failed", "class_too_rare", 1)


@pytest.mark.parametrize(
    "fault",
    [
        *("crash", "nothing", "link", "huge", "another", "bad_report"),
        *("page_figure", "other_figure", "named_figure"),
    ],
)
def test_what_the_machinery_did_wrong_is_tried_again_and_fails_in_the_end(sqlite_settings, submit, run, job, fault):
    job_id = submit(fault)
    for attempt in range(1, sqlite_settings.max_attempts):
        assert run(job_id) is Ending.GIVEN_BACK
        assert (job(job_id).state, job(job_id).attempt) == ("queued", attempt)
    assert run(job_id) is Ending.FINISHED
    assert (job(job_id).state, job(job_id).error_code) == ("failed", "worker_crashed")


def test_a_job_that_is_cancelled_while_it_runs_ends_cancelled(sqlite_sessions, submit, run, job):
    job_id = submit("hang")
    asked = []

    def cancel_once():
        if not asked:
            asked.append(jobs.cancel(sqlite_sessions, LOCAL_TENANT, job_id))
        return False

    assert run(job_id, should_stop=cancel_once) is Ending.FINISHED
    assert job(job_id).state == "cancelled"


def test_a_stopping_worker_hands_the_job_back_and_the_attempt_does_not_count(submit, run, job):
    job_id = submit("hang")
    assert run(job_id, should_stop=lambda: True) is Ending.GIVEN_BACK
    assert (job(job_id).state, job(job_id).attempt) == ("queued", 0)


def test_a_worker_that_lost_its_lease_writes_nothing(sqlite_sessions, submit, run, job):
    job_id = submit("hang")

    def steal():
        with sqlite_sessions.begin() as session:
            session.execute(update(JobRow).where(JobRow.id == job_id).values(token=77, worker_id="worker-2"))
        return False

    assert run(job_id, should_stop=steal) is Ending.LOST
    assert (job(job_id).state, job(job_id).worker_id) == ("running", "worker-2")


def test_a_long_job_keeps_its_lease(submit, run, job):
    job_id = submit("hang")
    leases = []

    def watch():
        leases.append(job(job_id).lease_until)
        return time.monotonic() > began + 1.5

    began = time.monotonic()
    run(job_id, should_stop=watch)
    assert leases == sorted(leases)
    assert leases[-1] > leases[0]


def test_bytes_that_are_gone_fail_the_job(sqlite_sessions, submit, run, job):
    job_id = submit("go well")
    with sqlite_sessions.begin() as session:
        session.execute(delete(BlobChunkRow))
    assert run(job_id) is Ending.FINISHED
    assert job(job_id).error_code == "content_missing"
