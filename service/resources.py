"""Models and data sets: what was declared, what was uploaded, and when they may go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session, sessionmaker

from service import db, ids
from service.errors import ConflictError, NotFoundError
from service.tables import AWAITING_CONTENT, OPEN_STATES, READY, DatasetRow, JobRow, ModelRow

Row = TypeVar("Row", ModelRow, DatasetRow)

_NOUNS: dict[type, tuple[str, str, str]] = {
    ModelRow: (ids.MODEL, "model", "model"),
    DatasetRow: (ids.DATASET, "dataset", "data set"),
}

_KINDS = {noun: prefix for prefix, _, noun in _NOUNS.values()} | {"job": ids.JOB}


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """Bytes that were received whole: where they are and what they look like."""

    sha256: str
    size: int
    format: str


def create_model(
    sessions: sessionmaker[Session],
    tenant: str,
    *,
    name: str | None,
    architecture: dict[str, Any],
    input_spec: dict[str, Any],
) -> ModelRow:
    """Record a model that awaits its content."""
    with db.writing(sessions) as session:
        model = ModelRow(
            id=ids.new_id(ids.MODEL),
            tenant=tenant,
            name=name,
            state=AWAITING_CONTENT,
            architecture=architecture,
            input=input_spec,
            created_at=db.now(session),
        )
        session.add(model)
    return model


def create_dataset(
    sessions: sessionmaker[Session], tenant: str, *, name: str | None, kind: str, target_class: int | None
) -> DatasetRow:
    """Record a data set that awaits its content."""
    with db.writing(sessions) as session:
        dataset = DatasetRow(
            id=ids.new_id(ids.DATASET),
            tenant=tenant,
            name=name,
            state=AWAITING_CONTENT,
            kind=kind,
            target_class=target_class,
            created_at=db.now(session),
        )
        session.add(dataset)
    return dataset


def get(sessions: sessionmaker[Session], row: type[Row], tenant: str, resource_id: str) -> Row:
    """The model or data set.

    Raises:
        NotFoundError: model_not_found, dataset_not_found.
    """
    with sessions() as session:
        return _find(session, row, tenant, resource_id)


def list_resources(
    sessions: sessionmaker[Session], row: type[Row], tenant: str, *, limit: int, before: str | None = None
) -> list[Row]:
    """Up to `limit` models or data sets, newest first, older than the id `before`."""
    statement = select(row).where(row.tenant == tenant, row.deleted_at.is_(None)).order_by(row.id.desc()).limit(limit)
    if before is not None:
        statement = statement.where(row.id < before)
    with sessions() as session:
        return list(session.scalars(statement))


def record_content(
    sessions: sessionmaker[Session], row: type[Row], tenant: str, resource_id: str, content: Content
) -> Row:
    """Make the resource ready with bytes that are stored; the same bytes a second time change nothing.

    Raises:
        NotFoundError: it was deleted meanwhile.
        ConflictError: content_already_uploaded.
    """
    with db.writing(sessions) as session:
        session.execute(
            update(row)
            .where(
                row.id == resource_id,
                row.tenant == tenant,
                row.state == AWAITING_CONTENT,
                row.deleted_at.is_(None),
            )
            .values(
                state=READY,
                ready_at=db.now(session),
                sha256=content.sha256,
                size=content.size,
                format=content.format,
            )
        )
        found = _find(session, row, tenant, resource_id)
        check_same_content(found, sha256=content.sha256, size=content.size)
        return found


def check_same_content(resource: ModelRow | DatasetRow, *, sha256: str | None = None, size: int | None = None) -> None:
    """Refuse other bytes for a resource that has some.

    Raises:
        ConflictError: content_already_uploaded.
    """
    if resource.state != READY:
        return
    if (sha256 is not None and sha256 != resource.sha256) or (size is not None and size != resource.size):
        raise ConflictError(
            f"{resource.id} has its content (SHA-256 {resource.sha256}), and content never changes: "
            "create a new one for other bytes",
            code="content_already_uploaded",
        )


def delete(sessions: sessionmaker[Session], row: type[Row], tenant: str, resource_id: str) -> None:
    """Forget the resource and let go of its bytes. Its row stays behind for the jobs that used it.

    Raises:
        NotFoundError: model_not_found, dataset_not_found.
        ConflictError: resource_in_use.
    """
    with db.writing(sessions) as session:
        resource = _find(session, row, tenant, resource_id, lock=True)
        used_by = session.scalar(
            select(JobRow.id)
            .where(
                JobRow.tenant == tenant,
                JobRow.state.in_(OPEN_STATES),
                or_(
                    JobRow.model_id == resource_id,
                    JobRow.clean_dataset_id == resource_id,
                    JobRow.triggered_dataset_id == resource_id,
                ),
            )
            .limit(1)
        )
        if used_by is not None:
            raise ConflictError(
                f"{used_by} uses it and has not ended: cancel that job, or wait for its end", code="resource_in_use"
            )
        resource.deleted_at = db.now(session)
        resource.sha256 = None  # the blob is garbage once nothing else refers to it


def find_ready(session: Session, row: type[Row], tenant: str, resource_id: str) -> Row:
    """The model or data set, with its content, locked against deletion until the transaction ends.

    Raises:
        NotFoundError: model_not_found, dataset_not_found.
        ConflictError: model_not_ready, dataset_not_ready.
    """
    resource = _find(session, row, tenant, resource_id, lock=True)
    if resource.state != READY:
        _, code, noun = _NOUNS[row]
        raise ConflictError(
            f"the {noun} {resource_id} awaits its content: PUT /v1/{code}s/{resource_id}/content first",
            code=f"{code}_not_ready",
        )
    return resource


def _find(session: Session, row: type[Row], tenant: str, resource_id: str, *, lock: bool = False) -> Row:
    prefix, code, noun = _NOUNS[row]
    resource = None
    if ids.is_id(prefix, resource_id):
        statement = select(row).where(row.id == resource_id, row.tenant == tenant, row.deleted_at.is_(None))
        # SQLite has no row locks and needs none: a writing transaction there is alone.
        resource = session.scalar(statement.with_for_update() if lock else statement)
    if resource is None:
        kind = next((name for name, prefix in _KINDS.items() if ids.is_id(prefix, resource_id)), noun)
        what = f"with the id {resource_id[:60]!r}" + ("" if kind == noun else f", which is that of a {kind}")
        raise NotFoundError(f"there is no {noun} {what}", code=f"{code}_not_found")
    return resource
