import threading
from datetime import timedelta

import pytest
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError

from service import blobs, db, jobs, resources
from service.errors import ConflictError, NotFoundError, UnprocessableError
from service.jobs import HeartbeatAnswer
from service.tables import DatasetRow, JobRow, ModelRow

TENANT = "local"
SPEC = {"inputs": "clean", "criterion": "linf"}


def make_ready(sessions, row, resource, data=b"bytes"):
    sha256, size = blobs.write(sessions, TENANT, [data])
    content = resources.Content(sha256=sha256, size=size, format="safetensors")
    return resources.record_content(sessions, row, TENANT, resource.id, content)


@pytest.fixture
def model(sessions):
    architecture = {"name": "small_resnet", "num_classes": 10}
    created = resources.create_model(sessions, TENANT, name="net", architecture=architecture, input_spec={"height": 28})
    return make_ready(sessions, ModelRow, created, b"weights")


def make_dataset(sessions, kind="clean", target_class=None):
    created = resources.create_dataset(sessions, TENANT, name=None, kind=kind, target_class=target_class)
    return make_ready(sessions, DatasetRow, created, kind.encode())


@pytest.fixture
def submit(sessions, model):
    clean = make_dataset(sessions)

    def _submit(**changes):
        values = {"model_id": model.id, "clean_dataset_id": clean.id, "triggered_dataset_id": None, "spec": SPEC}
        values["needs_triggered"] = False
        return jobs.submit(sessions, TENANT, **(values | changes))

    return _submit


@pytest.fixture
def claim(sessions):
    def _claim(job, worker="worker-1", lease_seconds=60.0, max_attempts=3, **more):
        return jobs.claim(sessions, job.id, worker, lease_seconds=lease_seconds, max_attempts=max_attempts, **more)

    return _claim


def reap(sessions, max_attempts=3, **more):
    return jobs.reap(sessions, resend_after_seconds=60, max_attempts=max_attempts, **more)


def state(sessions, job):
    return jobs.get(sessions, TENANT, job.id).state


def at_once(function, count=6):
    """Call `function(index)` from threads that start together; return what each returned or raised."""
    barrier, results = threading.Barrier(count), [None] * count

    def run(index):
        barrier.wait(20)
        try:
            results[index] = function(index)
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_a_claim_holds_everything_the_run_needs(sessions, submit, claim, model):
    triggered = make_dataset(sessions, "triggered", target_class=3)
    job = submit(triggered_dataset_id=triggered.id, spec={"inputs": "difference"})
    taken = claim(job)
    assert (taken.token, taken.attempt, taken.max_attempts) == (1, 1, 3)
    assert taken.architecture == {"name": "small_resnet", "num_classes": 10}
    assert taken.input == {"height": 28}
    assert taken.spec == {"inputs": "difference"}
    assert (taken.model_sha256, taken.model_format, taken.model_name) == (model.sha256, "safetensors", "net")
    assert taken.triggered_sha256 == triggered.sha256
    assert taken.target_class == 3
    assert b"".join(blobs.read(sessions, TENANT, taken.clean_sha256)) == b"clean"


def test_of_many_claimers_one_wins(submit, claim):
    for _ in range(5):
        job = submit()
        results = at_once(lambda index, job=job: claim(job, f"worker-{index}"))
        winners = [result for result in results if result is not None]
        assert len(winners) == 1, results
        assert winners[0].attempt == 1


def test_of_many_claimers_of_an_expired_lease_one_wins(submit, claim):
    job = submit()
    claim(job, "dead", lease_seconds=-1)
    results = at_once(lambda index: claim(job, f"worker-{index}"))
    assert [result.token for result in results if result is not None] == [2]


def test_a_held_lease_cannot_be_claimed(submit, claim):
    job = submit()
    assert claim(job) is not None
    assert claim(job, "worker-2") is None


def test_nothing_can_be_claimed_that_is_finished_or_unknown(sessions, submit, claim):
    job = submit()
    jobs.fail(sessions, claim(job), "bad", "no")
    assert claim(job) is None
    assert jobs.claim(sessions, "job_x", "w", lease_seconds=1, max_attempts=3) is None


def test_the_token_rises_with_each_claim(submit, claim):
    job = submit()
    tokens = [claim(job, lease_seconds=-1).token for _ in range(3)]
    assert tokens == [1, 2, 3]
    assert claim(job) is None, "three attempts are all there are"


def test_a_stale_token_changes_nothing(sessions, submit, claim):
    job = submit()
    stale = claim(job, "slow", lease_seconds=-1)
    fresh = claim(job, "fast")
    sha256, size = blobs.write(sessions, TENANT, [b"stale result"])
    assert jobs.heartbeat(sessions, stale, lease_seconds=60, progress=("x", 1, 2)) is HeartbeatAnswer.LEASE_LOST
    assert not jobs.succeed(sessions, stale, report_json="{}", checkpoint_sha256=sha256, checkpoint_size=size)
    assert not jobs.fail(sessions, stale, "code", "message")
    assert not jobs.finish_cancelled(sessions, stale)
    assert not jobs.release(sessions, stale, "code", "message")
    row = jobs.get(sessions, TENANT, job.id)
    assert (row.state, row.token, row.worker_id, row.error_code, row.phase) == ("running", 2, "fast", None, None)
    assert jobs.heartbeat(sessions, fresh, lease_seconds=60) is HeartbeatAnswer.CONTINUE


def test_figures_come_with_the_end_and_only_from_the_owner(sessions, submit, claim):
    job = submit()
    stale = claim(job, "slow", lease_seconds=-1)
    fresh = claim(job, "fast")
    sha256, size = blobs.write(sessions, TENANT, [b"result"])
    picture, picture_size = blobs.write(sessions, TENANT, [b"picture"])

    def succeed(owner, name, title="t"):
        figure = jobs.Figure(name=name, title=title, media_type="image/png", sha256=picture, size=picture_size)
        result = {"report_json": "{}", "checkpoint_sha256": sha256, "checkpoint_size": size}
        return jobs.succeed(sessions, owner, figures=[figure], **result)

    assert not succeed(stale, "stale")
    assert succeed(fresh, "fresh", "t\x00\udc80" + "t" * 300)
    (row,) = jobs.figures(sessions, TENANT, job.id)
    assert (row.name, row.sha256, row.size, row.title[:3]) == ("fresh", picture, picture_size, "t\ufffd?")
    assert blobs.collect_garbage(sessions, older_than_seconds=-1) == 0
    assert b"".join(blobs.read(sessions, TENANT, picture)) == b"picture"


def test_a_figure_without_its_bytes_leaves_the_job_as_it_was(sessions, submit, claim):
    job = submit()
    taken = claim(job)
    sha256, size = blobs.write(sessions, TENANT, [b"result"])
    figure = jobs.Figure(name="f", title="t", media_type="image/png", sha256="0" * 64, size=1)
    with pytest.raises(IntegrityError):
        jobs.succeed(
            sessions, taken, report_json="{}", checkpoint_sha256=sha256, checkpoint_size=size, figures=[figure]
        )
    assert state(sessions, job) == "running"


def test_an_old_owner_cannot_write_to_a_job_that_waits_again(sessions, submit, claim):
    job = submit()
    stale = claim(job, lease_seconds=-1)
    reap(sessions)
    assert not jobs.fail(sessions, stale, "code", "message")
    assert state(sessions, job) == "queued"


def test_of_many_ends_at_once_one_is_written(sessions, submit, claim):
    job = submit()
    taken = claim(job)
    sha256, size = blobs.write(sessions, TENANT, [b"result"])
    ends = [
        lambda: jobs.succeed(sessions, taken, report_json="{}", checkpoint_sha256=sha256, checkpoint_size=size),
        lambda: jobs.fail(sessions, taken, "code", "message"),
        lambda: jobs.finish_cancelled(sessions, taken),
        lambda: jobs.release(sessions, taken, "code", "message"),
    ]
    assert sorted(at_once(lambda index: ends[index](), len(ends))) == [False, False, False, True]


def test_a_heartbeat_extends_the_lease_and_records_progress(sessions, submit, claim):
    job = submit()
    taken = claim(job, lease_seconds=-1)
    assert jobs.heartbeat(sessions, taken, lease_seconds=60, progress=("sweep", 3, 24)) is HeartbeatAnswer.CONTINUE
    assert claim(job, "worker-2") is None, "the lease is fresh again"
    row = jobs.get(sessions, TENANT, job.id)
    assert (row.phase, row.progress_done, row.progress_total) == ("sweep", 3, 24)


def test_success_holds_the_report_and_the_checkpoint(sessions, submit, claim):
    job = submit()
    sha256, size = blobs.write(sessions, TENANT, [b"result"])
    assert jobs.succeed(sessions, claim(job), report_json='{"a":1}', checkpoint_sha256=sha256, checkpoint_size=size)
    assert jobs.report(sessions, TENANT, job.id) == '{"a":1}'
    row = jobs.get(sessions, TENANT, job.id)
    assert (row.state, row.checkpoint_sha256, row.checkpoint_size) == ("succeeded", sha256, size)
    assert row.finished_at >= row.started_at >= row.created_at
    assert blobs.collect_garbage(sessions, older_than_seconds=-1) == 0, "the result is referred to"


def test_release_gives_the_job_back_until_it_is_out_of_attempts(sessions, submit, claim):
    job = submit()
    for attempt in (1, 2):
        assert jobs.release(sessions, claim(job), "worker_crashed", f"crash {attempt}")
        assert state(sessions, job) == "queued"
        assert reap(sessions) == [job.id], "it needs a hint"
    assert jobs.release(sessions, claim(job), "worker_crashed", "crash 3")
    row = jobs.get(sessions, TENANT, job.id)
    assert (row.state, row.error_code, row.error_message) == ("failed", "worker_crashed", "crash 3")
    assert row.finished_at is not None
    assert reap(sessions) == []


def test_an_error_of_an_earlier_attempt_does_not_survive_success(sessions, submit, claim):
    job = submit()
    jobs.release(sessions, claim(job), "worker_crashed", "crash")
    sha256, size = blobs.write(sessions, TENANT, [b"result"])
    jobs.succeed(sessions, claim(job), report_json="{}", checkpoint_sha256=sha256, checkpoint_size=size)
    assert jobs.get(sessions, TENANT, job.id).error_code is None


def test_the_reaper_takes_back_an_expired_lease(sessions, submit, claim):
    job = submit()
    jobs.mark_sent(sessions, job.id)
    claim(job, lease_seconds=-1)
    assert reap(sessions) == [job.id]
    row = jobs.get(sessions, TENANT, job.id)
    assert (row.state, row.attempt, row.worker_id, row.error_code) == ("queued", 1, None, "worker_lost")
    assert claim(job).attempt == 2


def test_the_reaper_leaves_a_held_lease_alone(sessions, submit, claim):
    job = submit()
    claim(job)
    assert reap(sessions) == []
    assert state(sessions, job) == "running"


def test_out_of_attempts_the_reaper_ends_the_job_with_the_last_error(sessions, submit, claim):
    job = submit()
    jobs.release(sessions, claim(job), "worker_crashed", "out of memory, probably")
    claim(job, lease_seconds=-1)
    assert reap(sessions, max_attempts=2) == []
    row = jobs.get(sessions, TENANT, job.id)
    assert (row.state, row.error_code) == ("failed", "worker_lost")
    assert "out of memory, probably" in row.error_message
    assert row.finished_at is not None


def test_a_waiting_job_without_attempts_left_is_ended_by_the_reaper(sessions, submit, claim):
    job = submit()
    jobs.release(sessions, claim(job, max_attempts=3), "worker_crashed", "crash")
    assert reap(sessions, max_attempts=1) == []
    row = jobs.get(sessions, TENANT, job.id)
    assert (row.state, row.error_code, row.error_message) == ("failed", "worker_crashed", "crash")


def test_reapers_and_claimers_at_once_leave_one_owner(sessions, submit, claim):
    job = submit()
    claim(job, "dead", lease_seconds=-1)
    results = at_once(lambda index: reap(sessions) if index % 2 else claim(job, f"worker-{index}"))
    assert not [result for result in results if isinstance(result, Exception)]
    owners = [result for result in results if isinstance(result, jobs.Claim)]
    assert len(owners) <= 1
    assert state(sessions, job) == ("running" if owners else "queued")


def test_hints_are_sent_again_ever_more_rarely(sessions, submit):
    job = submit()
    assert reap(sessions) == [job.id], "never sent"
    jobs.mark_sent(sessions, job.id)
    sent_at = jobs.get(sessions, TENANT, job.id).sent_at
    assert reap(sessions, now=sent_at + timedelta(seconds=59)) == []
    assert reap(sessions, now=sent_at + timedelta(seconds=60)) == [job.id]
    jobs.mark_sent(sessions, job.id)
    sent_at = jobs.get(sessions, TENANT, job.id).sent_at
    assert reap(sessions, now=sent_at + timedelta(seconds=119)) == []
    assert reap(sessions, now=sent_at + timedelta(seconds=120)) == [job.id]


def test_a_waiting_job_is_cancelled_at_once(sessions, submit, claim):
    job = submit()
    cancelled = jobs.cancel(sessions, TENANT, job.id)
    assert cancelled.state == "cancelled"
    assert cancelled.finished_at is not None
    assert claim(job) is None
    assert reap(sessions) == []
    assert jobs.cancel(sessions, TENANT, job.id).state == "cancelled", "twice is the same as once"


def test_a_running_job_is_asked_to_stop(sessions, submit, claim):
    job = submit()
    taken = claim(job)
    assert jobs.cancel(sessions, TENANT, job.id).state == "cancelling"
    assert jobs.heartbeat(sessions, taken, lease_seconds=60) is HeartbeatAnswer.CANCEL
    assert claim(job, "worker-2") is None
    assert jobs.finish_cancelled(sessions, taken)
    assert state(sessions, job) == "cancelled"


def test_a_cancellation_whose_worker_died_is_finished_by_the_reaper(sessions, submit, claim):
    job = submit()
    claim(job, lease_seconds=-1)
    jobs.cancel(sessions, TENANT, job.id)
    assert claim(job, "worker-2") is None, "nobody starts it again"
    assert reap(sessions) == []
    assert state(sessions, job) == "cancelled"


def test_releasing_a_job_that_is_being_cancelled_cancels_it(sessions, submit, claim):
    job = submit()
    taken = claim(job)
    jobs.cancel(sessions, TENANT, job.id)
    assert jobs.release(sessions, taken, "worker_crashed", "crash")
    row = jobs.get(sessions, TENANT, job.id)
    assert (row.state, row.error_code) == ("cancelled", None)


def test_a_cancel_and_a_claim_at_once_agree(sessions, submit, claim):
    for _ in range(5):
        job = submit()
        taken, cancelled = at_once(
            lambda index, job=job: claim(job) if index == 0 else jobs.cancel(sessions, TENANT, job.id), 2
        )
        assert cancelled.state == ("cancelling" if taken else "cancelled")
        assert state(sessions, job) == cancelled.state


def test_a_finished_job_cannot_be_cancelled(sessions, submit, claim):
    job = submit()
    jobs.fail(sessions, claim(job), "code", "message")
    with pytest.raises(ConflictError) as refused:
        jobs.cancel(sessions, TENANT, job.id)
    assert refused.value.code == "job_already_finished"


def test_no_result_before_the_end(sessions, submit, claim):
    job = submit()
    for expected, step in [
        ("job_not_finished", lambda: None),
        ("job_not_finished", lambda: claim(job)),
        ("job_not_finished", lambda: jobs.cancel(sessions, TENANT, job.id)),
    ]:
        step()
        with pytest.raises(ConflictError) as refused:
            jobs.report(sessions, TENANT, job.id)
        assert refused.value.code == expected


def test_another_tenant_sees_nothing(sessions, submit):
    job = submit()
    for ask in (jobs.get, jobs.cancel, jobs.report):
        with pytest.raises(NotFoundError):
            ask(sessions, "other", job.id)
    assert jobs.list_jobs(sessions, "other", limit=10) == []


@pytest.mark.parametrize("job_id", ["", "job_1", "mdl_" + "0" * 26, "job_" + "0" * 26, "job_\x00", "job_" + "0" * 5000])
def test_an_id_of_nothing_is_not_found(sessions, job_id):
    with pytest.raises(NotFoundError) as refused:
        jobs.get(sessions, TENANT, job_id)
    assert refused.value.code == "job_not_found"


def test_a_job_needs_what_its_inputs_say(sessions, submit):
    triggered = make_dataset(sessions, "triggered", target_class=99)
    for code, changes in {
        "triggered_dataset_required": {"spec": {"inputs": "triggered"}, "needs_triggered": True},
        "wrong_dataset_kind": {"clean_dataset_id": triggered.id},
        "target_class_out_of_range": {"triggered_dataset_id": triggered.id},
    }.items():
        with pytest.raises(UnprocessableError) as refused:
            submit(**changes)
        assert refused.value.code == code
    assert jobs.list_jobs(sessions, TENANT, limit=10) == []


def test_a_deletion_and_a_submission_at_once_agree(sessions, submit, model):
    deleted, job = at_once(
        lambda index: submit() if index else resources.delete(sessions, ModelRow, TENANT, model.id), 2
    )
    if isinstance(job, JobRow):
        assert isinstance(deleted, ConflictError)
    else:
        assert (deleted, type(job)) == (None, NotFoundError)


def test_the_clock_is_the_databases(sessions, submit, claim):
    job = submit()
    claim(job, lease_seconds=60)
    with db.writing(sessions) as session:
        past = db.now(session) - timedelta(milliseconds=1)
        session.execute(update(JobRow).where(JobRow.id == job.id).values(lease_until=past))
    assert claim(job, "worker-2").attempt == 2


def test_a_worker_that_is_told_to_stop_hands_the_job_back_without_an_attempt(sessions, submit, claim):
    job = submit()
    taken = claim(job)
    assert jobs.hand_back(sessions, taken)
    row = jobs.get(sessions, TENANT, job.id)
    assert (row.state, row.attempt, row.token) == ("queued", 0, 1)
    assert reap(sessions) == [job.id]
    assert claim(job).token == 2, "the token still rises, so the old owner stays fenced off"
    assert not jobs.hand_back(sessions, taken)


def test_text_from_a_hostile_file_cannot_keep_a_job_from_ending(sessions, submit, claim):
    job = submit()
    taken = claim(job)
    hostile = "tensor '\x00\ud800'" + "x" * 10_000
    jobs.heartbeat(sessions, taken, lease_seconds=60, progress=(hostile, 0, 1))
    assert jobs.fail(sessions, taken, "code", hostile)
    row = jobs.get(sessions, TENANT, job.id)
    assert row.error_message.startswith("tensor '\ufffd?'")
    assert len(row.error_message) == 2000

    job = submit()
    sha256, size = blobs.write(sessions, TENANT, [b"result"])
    assert jobs.succeed(
        sessions, claim(job), report_json='{"a": "\ud800"}', checkpoint_sha256=sha256, checkpoint_size=size
    )
    assert jobs.report(sessions, TENANT, job.id) == '{"a": "\\ud800"}'
