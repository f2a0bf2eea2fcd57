from datetime import UTC, datetime, timedelta

from service import workers

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def later(seconds):
    return NOW + timedelta(seconds=seconds)


def test_a_worker_is_present_with_its_protections_until_it_was_not_seen_for_a_minute(sessions):
    workers.record(sessions, "a:1", ("rlimits", "no_network"), now=NOW)
    (row,) = workers.present(sessions, now=later(workers.PRESENT_SECONDS))
    assert (row.id, row.started_at, row.seen_at, row.protections) == ("a:1", NOW, NOW, ["rlimits", "no_network"])
    assert workers.present(sessions, now=later(workers.PRESENT_SECONDS + 1)) == []


def test_a_worker_seen_again_keeps_its_start(sessions):
    workers.record(sessions, "a:1", ("rlimits",), now=NOW)
    workers.record(sessions, "a:1", ("rlimits", "bubblewrap"), now=later(10))
    (row,) = workers.present(sessions, now=later(11))
    assert (row.started_at, row.seen_at, row.protections) == (NOW, later(10), ["rlimits", "bubblewrap"])


def test_what_a_killed_worker_left_is_removed_by_another(sessions):
    workers.record(sessions, "killed:1", (), now=NOW)
    workers.record(sessions, "a:2", (), now=later(workers.FORGET_SECONDS + 1))
    assert [row.id for row in workers.present(sessions, now=NOW)] == ["a:2"]


def test_a_worker_that_stops_is_forgotten_and_no_other(sessions):
    for name in ("a:1", "b:1"):
        workers.record(sessions, name, (), now=NOW)
    workers.forget(sessions, "a:1")
    assert [row.id for row in workers.present(sessions, now=NOW)] == ["b:1"]


def test_the_databases_clock_is_the_one_that_counts(sessions):
    workers.record(sessions, "a:1", ())
    assert [row.id for row in workers.present(sessions)] == ["a:1"]
