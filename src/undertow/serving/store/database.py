"""Transactions of a database, whichever it is: work is a function of a connection, run whole or not at all."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, Table, func, select
from sqlalchemy.dialects import postgresql, sqlite

from undertow.serving.store.records import Observer

T = TypeVar("T")

MIGRATION, SUBMISSION, GARBAGE = 75832210, 75832211, 75832212
"""Turns that are waited for. The numbers are our own, and other programs of the same database hardly have them."""

Work = Callable[[Connection], T]
"""What is done within a transaction. It may be run again when the transaction failed, so it changes nothing else."""


class Database(Protocol):
    """Errors of both methods: `StoreError`, and whatever the work raises, after which nothing of it was written."""

    def write(self, work: Work[T], operation: str) -> T:
        """Durable when it returns. operation: the name that metrics count it by."""
        ...

    def read(self, work: Work[T]) -> T:
        """Sees one state of everything."""
        ...

    def poll(self) -> bool:
        """Waits a moment, and says whether another process changed something since the last time. By one thread at a
        time."""
        ...

    def close(self) -> None: ...


def unobserved(kind: str, operation: str, value: float) -> None:
    """The observer of nobody."""
    del kind, operation, value


class timed:  # noqa: N801  # a context manager, read as a word
    """Tells an observer the seconds of what happens within."""

    def __init__(self, observe: Observer, operation: str):
        self._observe = observe
        self._operation = operation

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._observe("seconds", self._operation, time.perf_counter() - self._start)


def wait_turn(connection: Connection, turn: int, *, shared: bool = False) -> None:
    """Lets no other transaction have this turn until this one ends; with `shared`, none that wants it for itself.
    SQLite has one writer at a time anyway."""
    if connection.dialect.name == "postgresql":
        lock = func.pg_advisory_xact_lock_shared if shared else func.pg_advisory_xact_lock
        connection.execute(select(lock(turn)))


def put_rows(
    connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]], replace: Sequence[str] = ()
) -> None:
    """Inserts rows; of those whose primary key is there already only the columns of `replace` are changed."""
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    statement = dialect.insert(table)
    if replace:
        new = {name: statement.excluded[name] for name in replace}
        statement = statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=new)
    else:
        statement = statement.on_conflict_do_nothing()
    connection.execute(statement, [dict(row) for row in rows])
