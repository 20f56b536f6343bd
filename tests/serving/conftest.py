"""Databases for tests: both kinds, made once, empty for each test."""

import os
import shutil
import tempfile
import warnings
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from undertow.serving.store.store import Store
from undertow.serving.store.tables import metadata


@pytest.fixture(scope="session")
def memory_folder():
    """A folder where nothing waits for a disk: what tests show does not depend on it, and they commit thousands of
    times."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def sqlite_template(memory_folder):
    """A database with empty tables: copying it is faster than making them."""
    path = memory_folder / "template.db"
    Store.open(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def sqlite_url(sqlite_template, memory_folder):
    with tempfile.TemporaryDirectory(dir=memory_folder) as folder:
        shutil.copy(sqlite_template, f"{folder}/undertow.db")
        yield f"sqlite:///{folder}/undertow.db"


@pytest.fixture(scope="session")
def postgres_server():
    """A server of this session's own, from the `pgserver` wheel; it runs as another user where tests run as root."""
    pgserver = pytest.importorskip("pgserver")
    folder = tempfile.mkdtemp(prefix="undertow-postgresql-")  # pytest's own may be read by this user alone
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there may be no runtime directory of the user
        server = pgserver.get_server(f"{folder}/data", cleanup_mode="stop")
    url = server.get_uri().replace("postgresql://postgres:@", "postgresql+psycopg://postgres@")
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("ALTER SYSTEM SET fsync = off"))
        connection.execute(text("SELECT pg_reload_conf()"))
    engine.dispose()
    Store.open(url).close()
    yield url
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server.cleanup()
    shutil.rmtree(folder)


@pytest.fixture
def postgres_url(postgres_server):
    """A database with empty tables."""
    empty(postgres_server)
    return postgres_server


def empty(url: str) -> None:
    """Removes every row of a database of PostgreSQL."""
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE " + ", ".join(metadata.tables)))
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request):
    """Each kind of database in turn."""
    return request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")


class Clock:
    """A clock that stands until it is told."""

    def __init__(self):
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now

    def jump(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(sqlite_url, clock):
    """A store on SQLite whose clock stands."""
    store = Store.open(sqlite_url, clock=clock)
    yield store
    store.close()


@pytest.fixture
def any_store(database_url, clock):
    """A store on each kind of database, whose clock stands."""
    store = Store.open(database_url, clock=clock)
    yield store
    store.close()
