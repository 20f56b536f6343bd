"""SQLite: a write-ahead log, a commit that waits for the disk, and one writer in a process.

Python's own handling of transactions is turned off (isolation_level None), as SQLAlchemy's documentation says:
https://docs.sqlalchemy.org/en/21/dialects/sqlite.html#pysqlite-transactions
"""

import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, Generic

from sqlalchemy import URL, Connection, Engine, RootTransaction, create_engine, event
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError

from undertow.serving.store.database import T, Work, timed
from undertow.serving.store.problems import explained, is_locked
from undertow.serving.store.records import Observer

TURN_S = 0.001
"""How often a process that wants to write looks whether it may. SQLite's own waiting grows to a tenth of a second, in
which a busy process starves the others."""

CONTENDED_S = 1.0
"""How long a process leaves gaps between its transactions after it met another writer."""

POLL_S = 0.004
"""Between two looks at what other processes wrote: a pragma that takes microseconds."""

AT_ONCE = 64
"""Waiting works that share a transaction, at most."""

PRAGMAS = (
    "journal_mode=WAL",
    # A commit is on the disk when it returns; with NORMAL the last ones may be lost with the power.
    "synchronous=FULL",
    "foreign_keys=ON",
    "journal_size_limit=67108864",
)


class _Waiting(Generic[T]):
    """A work that waits for a transaction, and what came of it."""

    def __init__(self, work: Work[T]):
        self.work = work
        self.done = False
        self.value: T
        self.error: BaseException | None = None

    def outcome(self) -> T:
        if self.error is not None:
            raise self.error
        return self.value


class Sqlite:
    """A file. Threads that write at the same time share a transaction, and so the wait for the disk: whichever gets the
    lock runs what all of them brought, each behind a savepoint of its own."""

    def __init__(self, url: URL, *, patience_s: float, observe: Observer):
        self._place = url.database or ""
        self._patience_s = patience_s
        self._observe = observe
        self._waiting: deque[_Waiting[Any]] = deque()
        self._lock = threading.Lock()
        self._seen = 0
        try:
            if not self._place.startswith("file:"):
                Path(self._place).parent.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise explained(err, self._place, patience_s) from err
        self._readers = _engine(url, "BEGIN", wait_s=patience_s, size=8)
        self._writers = _engine(url, "BEGIN IMMEDIATE", wait_s=0.0, size=1)
        self._contended_until = 0.0
        self._connections: list[Connection] = []
        try:
            self._writer = self._connected(self._writers)
            self._watcher = self._connected(self._readers)
            self.poll()
        except BaseException:
            self.close()
            raise

    def write(self, work: Work[T], operation: str) -> T:
        mine = _Waiting(work)
        with timed(self._observe, operation):
            self._waiting.append(mine)
            with self._lock:
                while not mine.done:
                    self._run([self._waiting.popleft() for _ in range(min(AT_ONCE, len(self._waiting)))])
        return mine.outcome()

    def read(self, work: Work[T]) -> T:
        try:
            with self._readers.connect() as connection, connection.begin():
                return work(connection)
        except (SQLAlchemyError, OSError) as err:
            raise explained(err, self._place, self._patience_s) from err

    def poll(self) -> bool:
        try:
            seen = self._watcher.connection.cursor().execute("PRAGMA data_version").fetchone()[0]
        except (
            Exception
        ):  # of the driver, which SQLAlchemy does not see here; whoever reads or writes is told what it is
            seen = self._seen
        changed, self._seen = seen != self._seen, seen
        if not changed:
            time.sleep(POLL_S)
        return changed

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        self._writers.dispose()
        self._readers.dispose()

    def _connected(self, engine: Engine) -> Connection:
        until = time.monotonic() + self._patience_s
        while True:
            try:
                connection = engine.connect()
            except (SQLAlchemyError, OSError) as err:
                # Of two that turn a new file to write-ahead logging, one is refused at once instead of after a while.
                if not (isinstance(err, OperationalError) and is_locked(err) and time.monotonic() < until):
                    raise explained(err, self._place, self._patience_s) from err
                time.sleep(TURN_S)
            else:
                self._connections.append(connection)
                return connection

    def _run(self, together: list[_Waiting[Any]]) -> None:
        """Runs works in one transaction; none of them is left without an outcome."""
        try:
            with self._begin():
                for one in together:
                    self._run_one(one)
        except (SQLAlchemyError, OSError) as err:
            failed: BaseException = explained(err, self._place, self._patience_s)
            failed.__cause__ = err
            _fail(together, failed)
        except BaseException as err:
            _fail(together, err)
        for one in together:
            one.done = True

    def _begin(self) -> RootTransaction:
        start = time.monotonic()
        if start < self._contended_until:
            time.sleep(TURN_S)
        waited = False
        while True:
            try:
                return self._writer.begin()
            except OperationalError as err:
                if not is_locked(err) or time.monotonic() - start > self._patience_s:
                    raise
            if not waited:
                self._observe("busy", "begin", 1)
                waited = True
            self._contended_until = time.monotonic() + CONTENDED_S
            time.sleep(TURN_S)

    def _run_one(self, one: _Waiting[Any]) -> None:
        """An error of the work is its own; one of the database ends the transaction, and is everybody's."""
        savepoint = self._writer.begin_nested()
        try:
            one.value = one.work(self._writer)
            savepoint.commit()
        except DBAPIError:  # SQLite may have ended the transaction by itself, and its savepoints with it
            raise
        except Exception as err:
            savepoint.rollback()
            one.error = err


def _fail(together: list[_Waiting[Any]], error: BaseException) -> None:
    for one in together:
        one.error = one.error or error


def _engine(url: URL, begin: str, *, wait_s: float, size: int) -> Engine:
    """wait_s: how long SQLite itself waits for a lock, once it is connected."""
    engine = create_engine(url, connect_args={"check_same_thread": False}, pool_size=size, max_overflow=4 * size)

    @event.listens_for(engine, "connect")
    def connected(connection: Any, record: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        del record
        connection.isolation_level = None
        for pragma in PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
        connection.execute(f"PRAGMA busy_timeout={int(1000 * wait_s)}")

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:  # pyright: ignore[reportUnusedFunction]
        connection.exec_driver_sql(begin)

    return engine
