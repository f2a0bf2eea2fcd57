import pytest

from tests.e2e.conftest import Bundle, assert_delivered


@pytest.fixture
def stack(make_stack, postgresql_url, redis_url):
    return make_stack({"LUSTRATE_DATABASE_URL": postgresql_url, "LUSTRATE_BROKER_URL": redis_url}).start_parts()


def test_the_whole_path_on_postgresql_and_redis(stack, tmp_path):
    bundle = Bundle(stack.client)
    job_id = bundle.submit(recipe="prune", inputs="clean")  # the demo runs the default
    job = bundle.finish(job_id)
    assert job["state"] == "succeeded", job["error"]
    assert_delivered(stack.client, job_id, tmp_path / "sanitized")
    assert not (stack.data_dir / "lustrate.db").exists()
    assert [item["id"] for item in stack.client.list("jobs")] == [job_id]
    stack.assert_alive()
