import json
import time

import kombu
import kombu.exceptions
import pytest

from service import broker
from service.settings import Settings


@pytest.fixture
def make(tmp_path):
    made = []

    def _make(url):
        settings = Settings(data_dir=tmp_path, database_url="sqlite://", broker_url=url)
        made.append(broker.make_celery(settings))
        return made[-1]

    yield _make
    for celery in made:
        celery.close()


@pytest.fixture(params=["filesystem", "redis"])
def celery(request, make):
    return make("filesystem://" if request.param == "filesystem" else request.getfixturevalue("redis_url"))


def test_a_hint_carries_an_id_and_nothing_else(celery):
    broker.send(celery, "job_1")
    with celery.connection_for_read() as connection:
        queue = connection.SimpleQueue(kombu.Queue(broker.QUEUE_JOBS, routing_key=broker.QUEUE_JOBS))
        message = queue.get(timeout=5)
        assert message.headers["task"] == broker.TASK_SANITIZE
        assert (message.content_type, json.loads(message.body)[:2]) == ("application/json", [["job_1"], {}])
        message.ack()
        queue.close()


def test_a_broker_that_answers_is_reached(celery):
    broker.ping(celery)


def test_a_broker_that_is_away_costs_little_time(make):
    celery = make("redis://127.0.0.1:1/0")
    started = time.monotonic()
    for attempt in (lambda: broker.send(celery, "job_1"), lambda: broker.ping(celery)):
        with pytest.raises(kombu.exceptions.OperationalError):
            attempt()
    assert time.monotonic() - started < 3


def test_a_message_is_invisible_for_longer_than_the_longest_job(make):
    options = make("redis://127.0.0.1:1/0").conf.broker_transport_options
    assert options["visibility_timeout"] > 3600
