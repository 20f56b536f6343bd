"""A database by its URL, with tables of this version, that can be written."""

import time

from sqlalchemy import Connection, make_url
from sqlalchemy.exc import ArgumentError

from undertow.serving.store.database import Database, put_rows
from undertow.serving.store.migrate import is_current, migrate
from undertow.serving.store.postgresql import Postgresql
from undertow.serving.store.records import Observer, StoreError
from undertow.serving.store.sqlite import Sqlite
from undertow.serving.store.tables import health

URLS = "write sqlite:///folder/undertow.db, or postgresql+psycopg://user:password@host/database"


def shown(url: str) -> str:
    """A URL of a database without its password."""
    return make_url(url).render_as_string(hide_password=True)


def opened(url: str, *, patience_s: float, observe: Observer) -> Database:
    """The database at a URL, with tables of this version. Errors: `StoreError`."""
    try:
        parsed = make_url(url)
    except ArgumentError as err:
        raise StoreError(url.rpartition("@")[2], "unknown", "this is no URL of a database", URLS) from err
    place = shown(url)
    if parsed.get_backend_name() == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise StoreError(place, "unknown", "several processes cannot share a database in memory", URLS)
        database: Database = Sqlite(parsed, patience_s=patience_s, observe=observe)
    elif parsed.get_backend_name() == "postgresql":
        database = Postgresql(parsed, patience_s=patience_s, observe=observe)
    else:
        raise StoreError(place, "unknown", f"{parsed.get_backend_name()} is not supported", URLS)
    try:
        if not database.read(is_current):
            database.write(lambda connection: migrate(connection, place), "migrate")
        database.write(lambda connection: written(connection, time.time()), "check")
    except BaseException:
        database.close()
        raise
    return database


def written(connection: Connection, now: float) -> None:
    """Writes a row: that a database can be read says nothing of this."""
    put_rows(connection, health, [{"id": 1, "at": now}], replace=["at"])
