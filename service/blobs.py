"""Bytes in the database: written in rows of 4 MiB, found by their digest, each in its own short transaction.

The only file that would change for an object store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Exists, and_, delete, exists, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from service import ids
from service.db import now, writing
from service.tables import BlobChunkRow, BlobRow, DatasetRow, JobFigureRow, JobRow, ModelRow

CHUNK_BYTES = 4 * 1024 * 1024
# Longer than any pause between two writes of one blob, or between writing one and recording who refers to it.
GARBAGE_AGE_SECONDS = 3600.0


class BlobMissingError(Exception):
    """No such bytes, or they went away while being read."""

    def __init__(self, sha256: str) -> None:
        super().__init__(f"no blob with SHA-256 {sha256}")
        self.sha256 = sha256


def write(
    sessions: sessionmaker[Session], tenant: str, chunks: Iterable[bytes], *, sha256: str | None = None
) -> tuple[str, int]:
    """Store the bytes and return their (sha256, size); the same bytes twice are stored once.

    Args:
        sessions: the session factory.
        tenant: the owner; digests are never shared between tenants.
        chunks: the bytes, in pieces of any length.
        sha256: their digest where it is known already: bytes that are there are then not read at all.
    """
    if sha256 is not None:
        size = touch(sessions, tenant, sha256)
        if size is not None:
            return sha256, size
    blob_id = ids.new_id(ids.BLOB)
    with writing(sessions) as session:
        session.add(BlobRow(id=blob_id, tenant=tenant, sha256=None, size=0, touched_at=now(session)))
    digest, size = hashlib.sha256(), 0
    try:
        for index, data in enumerate(_equal_chunks(chunks)):
            digest.update(data)
            size += len(data)
            _append(sessions, blob_id, index, data)
        found = digest.hexdigest()
        assert sha256 is None or sha256 == found
        if not _finish(sessions, blob_id, found, size) and touch(sessions, tenant, found) is None:
            raise BlobMissingError(found)
    except BaseException:
        _discard(sessions, blob_id)
        raise
    return found, size


def touch(sessions: sessionmaker[Session], tenant: str, sha256: str) -> int | None:
    """The size of a stored blob, now safe from the garbage collector for an hour; None if there is none."""
    with writing(sessions) as session:
        return session.scalar(
            update(BlobRow)
            .where(BlobRow.tenant == tenant, BlobRow.sha256 == sha256)
            .values(touched_at=now(session))
            .returning(BlobRow.size)
        )


def read(
    sessions: sessionmaker[Session], tenant: str, sha256: str, start: int = 0, stop: int | None = None
) -> Iterator[bytes]:
    """The bytes from `start` up to `stop`, one row at a time; no transaction is open between two pieces.

    Raises:
        BlobMissingError: there is no such blob, or it was removed meanwhile.
    """
    with sessions() as session:
        blob = session.scalar(select(BlobRow).where(BlobRow.tenant == tenant, BlobRow.sha256 == sha256))
    if blob is None:
        raise BlobMissingError(sha256)
    stop = blob.size if stop is None else min(stop, blob.size)
    position = start
    while position < stop:
        index, offset = divmod(position, CHUNK_BYTES)
        with sessions() as session:
            data = session.scalar(
                select(BlobChunkRow.data).where(BlobChunkRow.blob_id == blob.id, BlobChunkRow.index == index)
            )
        if data is None:
            raise BlobMissingError(sha256)
        piece = data[offset : offset + stop - position]
        yield piece
        position += len(piece)


def collect_garbage(
    sessions: sessionmaker[Session], *, older_than_seconds: float = GARBAGE_AGE_SECONDS, limit: int = 100
) -> int:
    """Remove up to `limit` blobs that nothing refers to and nobody touched for a while; return how many went."""
    removed = 0
    with sessions() as session:
        cutoff = now(session) - timedelta(seconds=older_than_seconds)
        candidates = session.scalars(select(BlobRow.id).where(_is_garbage(cutoff)).limit(limit)).all()
    for blob_id in candidates:
        # One transaction each, and the condition again: a write that reuses the blob touches it first, and waits
        # for this row or makes this statement find nothing.
        with writing(sessions) as session:
            statement = delete(BlobRow).where(BlobRow.id == blob_id, _is_garbage(cutoff)).returning(BlobRow.id)
            removed += session.scalar(statement) is not None
    return removed


def _is_garbage(cutoff: datetime) -> ColumnElement[bool]:
    def refers(row: type[ModelRow | DatasetRow | JobFigureRow]) -> Exists:
        return exists().where(row.tenant == BlobRow.tenant, row.sha256 == BlobRow.sha256)

    result = exists().where(JobRow.tenant == BlobRow.tenant, JobRow.checkpoint_sha256 == BlobRow.sha256)
    unreferred = and_(~refers(ModelRow), ~refers(DatasetRow), ~refers(JobFigureRow), ~result)
    return and_(BlobRow.touched_at < cutoff, or_(BlobRow.sha256.is_(None), unreferred))


def _append(sessions: sessionmaker[Session], blob_id: str, index: int, data: bytes) -> None:
    with writing(sessions) as session:
        session.execute(insert(BlobChunkRow).values(blob_id=blob_id, index=index, data=data))
        session.execute(update(BlobRow).where(BlobRow.id == blob_id).values(touched_at=now(session)))


def _finish(sessions: sessionmaker[Session], blob_id: str, sha256: str, size: int) -> bool:
    """Give the blob its name; False, and the new copy is gone, where another one has that name already."""
    try:
        with writing(sessions) as session:
            session.execute(
                update(BlobRow).where(BlobRow.id == blob_id).values(sha256=sha256, size=size, touched_at=now(session))
            )
    except IntegrityError:
        _discard(sessions, blob_id)
        return False
    return True


def _discard(sessions: sessionmaker[Session], blob_id: str) -> None:
    with writing(sessions) as session:
        session.execute(delete(BlobRow).where(BlobRow.id == blob_id, BlobRow.sha256.is_(None)))


def _equal_chunks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of exactly CHUNK_BYTES, but for the last."""
    buffer = bytearray()
    for chunk in chunks:
        view = memoryview(chunk)
        while view:
            taken = view[: CHUNK_BYTES - len(buffer)]
            buffer += taken
            view = view[len(taken) :]
            if len(buffer) == CHUNK_BYTES:
                yield bytes(buffer)
                buffer.clear()
    if buffer:
        yield bytes(buffer)
