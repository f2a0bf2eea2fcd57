import hashlib
import threading
import tracemalloc

import pytest
from sqlalchemy import func, select

from service import blobs, db, resources
from service.tables import BlobChunkRow, BlobRow, ModelRow

TENANT = "local"
MIB = 1024 * 1024
PAYLOAD = bytes(range(256)) * (9 * MIB // 256) + b"tail"


def pieces(data, length):
    return (data[start : start + length] for start in range(0, len(data), length))


@pytest.mark.parametrize("length", [1000 * 1000, 4 * MIB, 5 * MIB, 20 * MIB])
def test_bytes_come_back_as_they_were_whatever_the_pieces(sessions, length):
    sha256, size = blobs.write(sessions, TENANT, pieces(PAYLOAD, length))
    assert (sha256, size) == (hashlib.sha256(PAYLOAD).hexdigest(), len(PAYLOAD))
    assert b"".join(blobs.read(sessions, TENANT, sha256)) == PAYLOAD
    with sessions() as session:
        lengths = session.scalars(select(func.length(BlobChunkRow.data)).order_by(BlobChunkRow.index)).all()
    assert lengths == [4 * MIB, 4 * MIB, MIB + 4]


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 1), (4 * MIB - 1, 4 * MIB + 1), (4 * MIB, 8 * MIB), (9 * MIB, None), (5, 5), (0, 10**12)]
)
def test_a_range_is_read_across_rows(sqlite_sessions, start, stop):
    sha256, _ = blobs.write(sqlite_sessions, TENANT, [PAYLOAD])
    assert b"".join(blobs.read(sqlite_sessions, TENANT, sha256, start, stop)) == PAYLOAD[start:stop]


def test_memory_does_not_grow_with_the_bytes(sqlite_sessions):
    tracemalloc.start()
    try:
        sha256, size = blobs.write(sqlite_sessions, TENANT, (bytes(MIB) for _ in range(64)))
        assert sum(len(piece) for piece in blobs.read(sqlite_sessions, TENANT, sha256)) == size == 64 * MIB
        assert tracemalloc.get_traced_memory()[1] < 20 * MIB
    finally:
        tracemalloc.stop()


def test_the_same_bytes_are_stored_once_per_tenant(sessions):
    first = blobs.write(sessions, TENANT, [b"abc"])
    assert blobs.write(sessions, TENANT, [b"a", b"bc"]) == first
    assert blobs.write(sessions, "other", [b"abc"]) == first
    with sessions() as session:
        assert session.scalar(select(func.count()).select_from(BlobRow)) == 2


def test_known_bytes_are_not_read_again(sessions):
    sha256, size = blobs.write(sessions, TENANT, [b"abc"])

    def explode():
        raise AssertionError
        yield

    assert blobs.write(sessions, TENANT, explode(), sha256=sha256) == (sha256, size)


def test_a_write_that_breaks_off_leaves_nothing(sessions):
    def breaks():
        yield b"x" * (5 * MIB)
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        blobs.write(sessions, TENANT, breaks())
    with sessions() as session:
        assert session.scalar(select(func.count()).select_from(BlobRow)) == 0
        assert session.scalar(select(func.count()).select_from(BlobChunkRow)) == 0


def test_the_same_bytes_written_at_once_end_as_one_blob(sessions):
    barrier, results = threading.Barrier(4), []

    def write():
        def chunks():
            barrier.wait(20)
            yield b"y" * (5 * MIB)

        results.append(blobs.write(sessions, TENANT, chunks()))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(results)) == 1
    assert len(results) == 4
    with sessions() as session:
        assert session.scalar(select(func.count()).select_from(BlobRow)) == 1
        assert session.scalar(select(func.count()).select_from(BlobChunkRow)) == 2


def test_another_tenants_bytes_are_not_found(sessions):
    sha256, _ = blobs.write(sessions, TENANT, [b"secret"])
    with pytest.raises(blobs.BlobMissingError):
        list(blobs.read(sessions, "other", sha256))
    assert blobs.touch(sessions, "other", sha256) is None


def test_garbage_is_what_nothing_refers_to_and_nobody_touched(sessions):
    kept, size = blobs.write(sessions, TENANT, [b"kept"])
    lost, _ = blobs.write(sessions, TENANT, [b"lost"])
    model = resources.create_model(sessions, TENANT, name=None, architecture={}, input_spec={})
    content = resources.Content(sha256=kept, size=size, format="safetensors")
    resources.record_content(sessions, ModelRow, TENANT, model.id, content)

    assert blobs.collect_garbage(sessions) == 0, "both are fresh"
    assert blobs.collect_garbage(sessions, older_than_seconds=-1) == 1
    with pytest.raises(blobs.BlobMissingError):
        list(blobs.read(sessions, TENANT, lost))
    assert b"".join(blobs.read(sessions, TENANT, kept)) == b"kept"

    resources.delete(sessions, ModelRow, TENANT, model.id)
    assert blobs.collect_garbage(sessions, older_than_seconds=-1) == 1
    with sessions() as session:
        assert session.scalar(select(func.count()).select_from(BlobChunkRow)) == 0


def test_a_write_that_was_killed_is_garbage_too(sessions):
    with db.writing(sessions) as session:
        session.add(BlobRow(id="blb_dead", tenant=TENANT, sha256=None, size=0, touched_at=db.now(session)))
    assert blobs.collect_garbage(sessions, older_than_seconds=-1) == 1


def test_bytes_that_vanish_while_being_read_are_an_error_not_a_short_file(sqlite_sessions):
    sha256, _ = blobs.write(sqlite_sessions, TENANT, [PAYLOAD])
    reader = blobs.read(sqlite_sessions, TENANT, sha256)
    next(reader)
    blobs.collect_garbage(sqlite_sessions, older_than_seconds=-1)
    with pytest.raises(blobs.BlobMissingError):
        next(reader)
