"""The engine, the sessions and the migrations: the only file that knows PostgreSQL from SQLite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, func, make_url, select
from sqlalchemy.orm import Session, sessionmaker

from service.settings import Settings

# How long a SQLite writer waits for another one; every write transaction here takes milliseconds.
SQLITE_BUSY_SECONDS = 30
WRITES = "lustrate_writes"
_MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"


def make_engine(settings: Settings, *, enforce_foreign_keys: bool = True) -> Engine:
    """An engine for the configured database; nothing connects until it is used."""
    url = make_url(settings.database_url)
    if url.drivername in {"postgresql", "postgres"}:
        url = url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() == "sqlite":
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        engine = create_engine(url, connect_args={"timeout": SQLITE_BUSY_SECONDS}, pool_size=20, max_overflow=20)
        _configure_sqlite(engine, enforce_foreign_keys=enforce_foreign_keys)
        return engine
    # A connection that a restart of the database broke is found by the ping, not by a client's request.
    return create_engine(url, pool_pre_ping=True, pool_size=10, max_overflow=30, connect_args={"connect_timeout": 5})


def make_sessions(engine: Engine) -> sessionmaker[Session]:
    """A session factory whose rows stay readable after the commit."""
    return sessionmaker(engine, expire_on_commit=False)


@contextmanager
def writing(sessions: sessionmaker[Session]) -> Iterator[Session]:
    """One transaction that writes: committed at the end, rolled back on an error.

    On SQLite it takes the write lock at once (BEGIN IMMEDIATE): a transaction that reads first and upgrades later
    fails with 'database is locked' without waiting.
    """
    with sessions() as session:
        session.connection(execution_options={WRITES: True})
        yield session
        session.commit()


def now(session: Session) -> datetime:
    """The time by the database's clock, so that leases do not depend on how well the machines' clocks agree."""
    if session.get_bind().dialect.name == "postgresql":
        clock: datetime = session.scalars(select(func.clock_timestamp())).one()
        return clock.astimezone(UTC)
    return datetime.now(UTC)


def migrate(settings: Settings) -> None:
    """Bring the database to the newest revision; of several processes one does it, the others wait and find it done."""
    engine = make_engine(settings, enforce_foreign_keys=False)
    try:
        if not is_migrated(engine):
            with engine.connect().execution_options(**{WRITES: True}) as connection:
                command.upgrade(alembic_config(connection), "head")
    finally:
        engine.dispose()


def is_migrated(engine: Engine) -> bool:
    """Whether the database is at the newest revision that this code knows."""
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_heads()
        return set(current) == set(ScriptDirectory.from_config(alembic_config(connection)).get_heads())


def alembic_config(connection: Connection) -> Config:
    """Alembic's configuration for an open connection; the migrations lie beside this package, installed or not."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _configure_sqlite(engine: Engine, *, enforce_foreign_keys: bool) -> None:
    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: object) -> None:  # noqa: ANN401 - the driver's own type
        connection.isolation_level = None  # we say BEGIN ourselves, below
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")  # WAL stays consistent; a power cut may undo the last commits
        cursor.execute(f"PRAGMA busy_timeout={SQLITE_BUSY_SECONDS * 1000}")
        cursor.execute(f"PRAGMA foreign_keys={'ON' if enforce_foreign_keys else 'OFF'}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
