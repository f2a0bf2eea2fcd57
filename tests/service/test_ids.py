import pytest

from service import ids


def test_later_ids_sort_after_earlier_ones():
    made = []
    for _ in range(50):
        made.append(ids.new_id(ids.JOB))
        while ids.new_id(ids.JOB)[:16] <= made[-1][:16]:  # until the microsecond has passed
            continue
    assert made == sorted(made)
    assert len(set(made)) == len(made)


def test_an_id_is_recognised_by_its_kind():
    model = ids.new_id(ids.MODEL)
    assert ids.is_id(ids.MODEL, model)
    assert not ids.is_id(ids.JOB, model)


@pytest.mark.parametrize("text", ["", "mdl_" + "u" * 26, "mdl_" + "0" * 27, "mdl_" + "0" * 26 + "\n", "mdl_\x00"])
def test_anything_else_is_no_id(text):
    assert not ids.is_id(ids.MODEL, text)
