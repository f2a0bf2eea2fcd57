from __future__ import annotations

from benchmarks.battery import rows


def test_rows_come_back_in_the_order_in_which_they_were_appended(tmp_path):
    path = tmp_path / "cache" / "rows.jsonl"
    assert rows.read(path) == []
    for number in range(3):
        rows.append(path, {"id": str(number), "error": None})
    assert [row["id"] for row in rows.read(path)] == ["0", "1", "2"]


def test_half_a_line_loses_that_row_alone(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows.append(path, {"id": "a", "error": None})
    with path.open("a") as file:
        file.write('{"id": "b", "err')
    rows.append(path, {"id": "c", "error": None})
    assert [row["id"] for row in rows.read(path)] == ["a", "c"]


def test_a_failed_job_is_not_finished_and_a_later_row_replaces_an_earlier_one():
    first, failed, second = (
        {"id": "a", "error": None, "der": 0.5},
        {"id": "b", "error": "MemoryError: "},
        {"id": "a", "error": None, "der": 0.9},
    )
    assert rows.finished([first, failed, second]) == {"a": second}
