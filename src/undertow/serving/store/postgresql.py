"""PostgreSQL, through psycopg: connections that are lost are replaced, and what they carried is done again."""

import time
from contextlib import suppress
from importlib import import_module
from typing import Any

from sqlalchemy import URL, Connection, create_engine, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from undertow.extras import optional_package
from undertow.serving.store.database import T, Work, timed
from undertow.serving.store.problems import explained, is_disconnected, sqlstate
from undertow.serving.store.records import Observer

CHANNEL = "undertow"

POLL_S = 0.5

SAID = text(f"NOTIFY {CHANNEL}")


class Postgresql:
    """A database of a server. Each transaction has a connection of its own; the server makes commits of many share a
    wait for the disk by itself."""

    def __init__(self, url: URL, *, patience_s: float, observe: Observer):
        with optional_package("psycopg", "postgres"):
            import_module("psycopg")  # SQLAlchemy says less when it is not there
        self._place = url.render_as_string(hide_password=True)
        self._patience_s = patience_s
        self._observe = observe
        waits = f"-c lock_timeout={int(patience_s * 1000)} -c idle_in_transaction_session_timeout=60000"
        self._engine = create_engine(
            url.set(drivername="postgresql+psycopg"),
            pool_size=8,
            max_overflow=32,
            pool_pre_ping=True,
            connect_args={"connect_timeout": max(2, int(patience_s)), "options": waits},
        )
        self._listener: Any = None  # psycopg's connection, which is imported late

    def write(self, work: Work[T], operation: str) -> T:
        def told(connection: Connection) -> T:
            value = work(connection)
            connection.execute(SAID)
            return value

        with timed(self._observe, operation):
            return self._run(told, operation)

    def read(self, work: Work[T]) -> T:
        return self._run(work, "read")

    def poll(self) -> bool:
        try:
            if self._listener is None:
                self._listener = self._listening()
                return True  # whatever happened before
            return any(True for _ in self._listener.notifies(timeout=POLL_S, stop_after=1))
        except Exception:  # of the driver; whoever reads or writes is told what it is
            self._stop_listening()
            time.sleep(POLL_S)
            return False

    def close(self) -> None:
        self._stop_listening()
        self._engine.dispose()

    def _run(self, work: Work[T], operation: str) -> T:
        """Runs a work again when the connection was lost, or when the server chose it to end a deadlock. It may have
        been written then: works notice what they themselves wrote."""
        until, wait_s = time.monotonic() + self._patience_s, 0.05
        while True:
            try:
                with self._engine.begin() as connection:
                    return work(connection)
            except SQLAlchemyError as err:
                if not _may_repeat(err) or time.monotonic() + wait_s > until:
                    raise explained(err, self._place, self._patience_s) from err
                self._observe("busy", operation, 1)
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, 1.0)

    def _listening(self) -> Any:
        raw = self._engine.raw_connection()
        connection: Any = raw.driver_connection
        raw.detach()
        try:
            connection.autocommit = True
            connection.execute(f"LISTEN {CHANNEL}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _stop_listening(self) -> None:
        if self._listener is not None:
            with suppress(Exception):
                self._listener.close()
            self._listener = None


def _may_repeat(error: SQLAlchemyError) -> bool:
    """Disconnected, or 40001 and 40P01: serialization failures and deadlocks."""
    if not isinstance(error, DBAPIError):
        return False
    return is_disconnected(error) or sqlstate(error.orig) in ("40001", "40P01")
