"""The tables. "Model" always means a neural network; a table's class is named ...Row."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# Every row belongs to a tenant from the first day; until API keys exist there is one.
LOCAL_TENANT = "local"

AWAITING_CONTENT = "awaiting_content"
READY = "ready"

# What a job is for: a sanitized checkpoint, or only a look at its clean set.
SANITIZE = "sanitize"
PREVIEW = "preview"

QUEUED = "queued"
RUNNING = "running"
CANCELLING = "cancelling"
SUCCEEDED = "succeeded"
FAILED = "failed"
CANCELLED = "cancelled"
FINISHED_STATES = (SUCCEEDED, FAILED, CANCELLED)
OWNED_STATES = (RUNNING, CANCELLING)
OPEN_STATES = (QUEUED, RUNNING, CANCELLING)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC; SQLite, which has no such type, keeps it as text that sorts by time."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC, and naive where the database knows no zones."""
        if value is None:
            return None
        assert value.tzinfo is not None
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Back to an aware datetime in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if dialect.name == "sqlite" else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Names every constraint, so that a later migration can find it in both databases."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own way of declaring it
        datetime: UtcDateTime,
        dict[str, Any]: JSON,
        list[str]: JSON,
        int: BigInteger,
    }


class BlobRow(Base):
    """Bytes of one tenant, found by their digest. While they are being written `sha256` is null."""

    __tablename__ = "blobs"
    __table_args__ = (UniqueConstraint("tenant", "sha256"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64))
    sha256: Mapped[str | None] = mapped_column(String(64))
    size: Mapped[int]
    # Moved forward by every write, so that the garbage collector leaves alone what somebody is about to refer to.
    touched_at: Mapped[datetime]


class BlobChunkRow(Base):
    """At most 4 MiB of a blob; all but the last have exactly that."""

    __tablename__ = "blob_chunks"

    blob_id: Mapped[str] = mapped_column(ForeignKey("blobs.id", ondelete="CASCADE"), primary_key=True)
    index: Mapped[int] = mapped_column(primary_key=True)
    data: Mapped[bytes] = mapped_column(LargeBinary)


class ModelRow(Base):
    """A suspect network: what it is, and once uploaded, where its bytes are."""

    __tablename__ = "models"
    __table_args__ = (
        ForeignKeyConstraint(["tenant", "sha256"], ["blobs.tenant", "blobs.sha256"]),
        Index(None, "tenant", "id"),
        Index(None, "tenant", "sha256"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64))
    name: Mapped[str | None] = mapped_column(String(200))
    state: Mapped[str] = mapped_column(String(20))
    architecture: Mapped[dict[str, Any]]
    input: Mapped[dict[str, Any]]
    format: Mapped[str | None] = mapped_column(String(40))
    size: Mapped[int | None]
    sha256: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[datetime]
    ready_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]


class DatasetRow(Base):
    """Clean images, or images that carry a trigger."""

    __tablename__ = "datasets"
    __table_args__ = (
        ForeignKeyConstraint(["tenant", "sha256"], ["blobs.tenant", "blobs.sha256"]),
        Index(None, "tenant", "id"),
        Index(None, "tenant", "sha256"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64))
    name: Mapped[str | None] = mapped_column(String(200))
    state: Mapped[str] = mapped_column(String(20))
    kind: Mapped[str] = mapped_column(String(20))
    target_class: Mapped[int | None]
    format: Mapped[str | None] = mapped_column(String(40))
    size: Mapped[int | None]
    sha256: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[datetime]
    ready_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]


class JobRow(Base):
    """One sanitization or preview; this table is the queue, and a broker's message only a hint to look at it."""

    __tablename__ = "jobs"
    __table_args__ = (
        ForeignKeyConstraint(["tenant", "checkpoint_sha256"], ["blobs.tenant", "blobs.sha256"]),
        Index(None, "tenant", "id"),
        Index(None, "tenant", "state", "id"),
        Index(None, "state", "lease_until"),
        Index(None, "tenant", "checkpoint_sha256"),
        Index(None, "model_id"),
        Index(None, "clean_dataset_id"),
        Index(None, "triggered_dataset_id"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64))
    # The default is the database's, so that a release that knows one kind only can go on inserting.
    kind: Mapped[str] = mapped_column(String(20), default=SANITIZE, server_default=SANITIZE)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    clean_dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"))
    triggered_dataset_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id"))
    spec: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(20))
    phase: Mapped[str | None] = mapped_column(String(100))
    progress_done: Mapped[int | None]
    progress_total: Mapped[int | None]
    # The lease: who has the job, until when, for the how-manieth time, and the token that fences off older owners.
    worker_id: Mapped[str | None] = mapped_column(String(200))
    lease_until: Mapped[datetime | None]
    attempt: Mapped[int] = mapped_column(default=0)
    token: Mapped[int] = mapped_column(default=0)
    # The outbox: when a hint was last sent since the job was queued, and how many were.
    sent_at: Mapped[datetime | None]
    num_sent: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    error_code: Mapped[str | None] = mapped_column(String(100))
    error_message: Mapped[str | None] = mapped_column(Text)
    # Deferred, because a report can be large and a list of jobs needs none of them.
    report: Mapped[str | None] = mapped_column(Text, deferred=True)
    checkpoint_sha256: Mapped[str | None] = mapped_column(String(64))
    checkpoint_size: Mapped[int | None]


class JobFigureRow(Base):
    """A picture of a finished job's report, in the report's order."""

    __tablename__ = "job_figures"
    __table_args__ = (
        ForeignKeyConstraint(["tenant", "sha256"], ["blobs.tenant", "blobs.sha256"]),
        Index(None, "tenant", "sha256"),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    position: Mapped[int]
    tenant: Mapped[str] = mapped_column(String(64))
    title: Mapped[str] = mapped_column(String(200))
    media_type: Mapped[str] = mapped_column(String(40))
    sha256: Mapped[str] = mapped_column(String(64))
    size: Mapped[int]


class WorkerRow(Base):
    """A worker that says it is alive, and what the processes of its jobs give up."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(200), primary_key=True)
    started_at: Mapped[datetime]
    seen_at: Mapped[datetime]
    protections: Mapped[list[str]]
