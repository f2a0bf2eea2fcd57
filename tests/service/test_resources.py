import threading

import pytest

from service import blobs, resources
from service.errors import ConflictError, NotFoundError
from service.tables import DatasetRow, ModelRow

TENANT = "local"


def content(sessions, data):
    sha256, size = blobs.write(sessions, TENANT, [data])
    return resources.Content(sha256=sha256, size=size, format="safetensors")


@pytest.fixture
def model(sessions):
    return resources.create_model(sessions, TENANT, name=None, architecture={}, input_spec={})


def test_of_two_uploads_at_once_one_is_recorded(sessions, model):
    contents = [content(sessions, data) for data in (b"one", b"two")]
    barrier, results = threading.Barrier(2), []

    def record(index):
        barrier.wait(20)
        try:
            results.append(resources.record_content(sessions, ModelRow, TENANT, model.id, contents[index]).sha256)
        except ConflictError as error:
            results.append(error.code)

    threads = [threading.Thread(target=record, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorded = resources.get(sessions, ModelRow, TENANT, model.id)
    assert sorted(results) == sorted([recorded.sha256, "content_already_uploaded"])


def test_content_for_what_was_deleted_meanwhile_is_not_recorded(sessions, model):
    received = content(sessions, b"late")
    resources.delete(sessions, ModelRow, TENANT, model.id)
    with pytest.raises(NotFoundError):
        resources.record_content(sessions, ModelRow, TENANT, model.id, received)


def test_another_tenant_sees_and_changes_nothing(sessions, model):
    assert resources.list_resources(sessions, ModelRow, "other", limit=10) == []
    with pytest.raises(NotFoundError):
        resources.get(sessions, ModelRow, "other", model.id)
    with pytest.raises(NotFoundError):
        resources.delete(sessions, ModelRow, "other", model.id)


def test_an_id_of_another_kind_is_not_found(sessions, model):
    with pytest.raises(NotFoundError) as refused:
        resources.get(sessions, DatasetRow, TENANT, model.id)
    assert refused.value.code == "dataset_not_found"
