import time

import pytest
from sqlalchemy import text

from service import db, workers
from worker.presence import Presence

SECONDS = 0.02


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(SECONDS)
    return found


@pytest.fixture
def presence(sessions):
    presence = Presence(sessions, "here:1", ("rlimits", "no_network"), seconds=SECONDS)
    yield presence
    presence.close()


def test_a_worker_is_seen_again_and_again_until_it_stops(presence, sessions):
    presence.start()
    presence.start()
    (first,) = wait_for(lambda: workers.present(sessions))
    assert (first.id, first.protections) == ("here:1", ["rlimits", "no_network"])
    wait_for(lambda: workers.present(sessions)[0].seen_at > first.seen_at)
    presence.close()
    assert workers.present(sessions) == []


def test_one_that_never_started_says_nothing(presence, sessions):
    presence.close()
    assert workers.present(sessions) == []


def test_a_database_without_the_table_stops_nothing(presence, sessions):
    with db.writing(sessions) as session:
        session.execute(text("ALTER TABLE workers RENAME TO away"))
    presence.start()
    with db.writing(sessions) as session:
        session.execute(text("ALTER TABLE away RENAME TO workers"))
    wait_for(lambda: workers.present(sessions))
