"""How Alembic reaches the database: through the connection it was given, or the one that the environment names."""

from alembic import context
from sqlalchemy import Connection, text

from service.db import WRITES, make_engine
from service.settings import Settings
from service.tables import Base

# Any number that no other program uses for an advisory lock on this database.
MIGRATION_LOCK = 7_236_114_001


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=True,  # SQLite alters a table by copying it
        transactional_ddl=True,
    )
    with context.begin_transaction():
        if connection.dialect.name == "postgresql":
            # Several processes may start at once: one migrates, the others wait here and find it done.
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    engine = make_engine(Settings.from_env(), enforce_foreign_keys=False)
    with engine.connect().execution_options(**{WRITES: True}) as opened:
        run(opened)
    engine.dispose()
