import os
import subprocess
import sys

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text

from service import db
from service.tables import Base


@pytest.fixture
def engine(settings):
    engine = db.make_engine(settings)
    yield engine
    engine.dispose()


def test_the_migrations_make_exactly_the_tables(engine):
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_every_migration_can_be_undone_and_done_again(settings, engine):
    with engine.connect().execution_options(**{db.WRITES: True}) as connection:
        command.downgrade(db.alembic_config(connection), "base")
        connection.rollback()
        assert set(inspect(connection).get_table_names()) <= {"alembic_version"}
    assert not db.is_migrated(engine)
    db.migrate(settings)
    assert db.is_migrated(engine)


def test_processes_that_migrate_at_once_do_it_once(settings, engine):
    with engine.connect().execution_options(**{db.WRITES: True}) as connection:
        command.downgrade(db.alembic_config(connection), "base")
    program = "from service import db; from service.settings import Settings; db.migrate(Settings.from_env())"
    env = os.environ | {"LUSTRATE_DATA_DIR": str(settings.data_dir), "LUSTRATE_DATABASE_URL": settings.database_url}
    started = [
        subprocess.Popen([sys.executable, "-c", program], env=env, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    assert [(process.communicate()[1], process.returncode) for process in started] == [("", 0)] * 3
    assert db.is_migrated(engine)


def test_sqlite_keeps_its_promises(sqlite_sessions):
    with sqlite_sessions() as session:
        assert session.scalar(text("PRAGMA journal_mode")) == "wal"
        assert session.scalar(text("PRAGMA foreign_keys")) == 1


def test_a_reader_does_not_wait_for_a_writer(sqlite_sessions):
    with db.writing(sqlite_sessions) as writer:
        writer.execute(text("DELETE FROM jobs"))
        with sqlite_sessions() as reader:
            assert reader.scalar(text("SELECT count(*) FROM jobs")) == 0


def test_an_error_inside_a_transaction_undoes_it(sessions):
    def write_and_break():
        with db.writing(sessions) as session:
            session.execute(text("INSERT INTO blobs (id, tenant, size, touched_at) VALUES ('x', 't', 0, '2026-01-01')"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_and_break()
    with sessions() as session:
        assert session.scalar(text("SELECT count(*) FROM blobs")) == 0


def test_the_database_says_what_time_it_is_with_its_zone(sessions):
    with sessions() as session:
        assert db.now(session).utcoffset().total_seconds() == 0
