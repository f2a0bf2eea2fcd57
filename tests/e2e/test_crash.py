import signal

import psutil
import pytest

from tests.e2e.conftest import Bundle, assert_delivered, wait_until

LEASE_SECONDS = 3
# Takes seconds, most of them in steps that tell their progress: time enough to be killed in the middle.
SPEC = {"recipe": "prune", "inputs": "clean"}


@pytest.fixture(params=["embedded", "production"])
def stack(request, make_stack):
    environment = {"LUSTRATE_LEASE_SECONDS": str(LEASE_SECONDS)}
    if request.param == "production":
        environment["LUSTRATE_DATABASE_URL"] = request.getfixturevalue("postgresql_url")
        environment["LUSTRATE_BROKER_URL"] = request.getfixturevalue("redis_url")
    return make_stack(environment).start_parts()


def test_a_worker_killed_in_mid_job_costs_an_attempt_and_the_job_ends_once(stack, tmp_path):
    client = stack.client
    bundle = Bundle(client)
    job_id = bundle.submit(**SPEC)
    wait_until(lambda: (client.job(job_id)["progress"] or {}).get("done"), 90, "progress")

    worker = psutil.Process(stack.processes["worker"].pid)
    pool = worker.children()
    children = [process for process in worker.children(recursive=True) if process not in pool]
    assert children  # the job's own process
    for process in (worker, *pool):
        process.kill()  # both at once: nobody is left to hand the job back
    stack.processes.pop("worker").wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []

    assert client.job(job_id)["state"] in {"running", "queued"}
    stack.start("worker")
    job = bundle.finish(job_id)
    assert (job["state"], job["attempt"]) == ("succeeded", 2), job["error"]
    assert_delivered(client, job_id, tmp_path / "sanitized")
    assert len(list((stack.data_dir / "work").glob("*-*"))) == 1  # what the killed worker left is gone


@pytest.mark.parametrize("stack", ["production"], indirect=True)
def test_a_worker_told_to_stop_hands_its_job_back_and_no_attempt_is_lost(stack):
    client = stack.client
    bundle = Bundle(client)
    job_id = bundle.submit(**SPEC)
    wait_until(lambda: (client.job(job_id)["progress"] or {}).get("done"), 90, "progress")

    worker = stack.processes.pop("worker")
    below = psutil.Process(worker.pid).children(recursive=True)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    _, alive = psutil.wait_procs(below, timeout=5)
    assert alive == []
    job = client.job(job_id)
    assert (job["state"], job["attempt"]) == ("queued", 0)

    stack.start("worker")
    job = bundle.finish(job_id)
    assert (job["state"], job["attempt"]) == ("succeeded", 1), job["error"]
