"""What is the matter with a database, in a sentence with a remedy: no error of SQLAlchemy leaves the store."""

import sqlite3

from sqlalchemy.exc import DBAPIError, OperationalError

from undertow.serving.store.records import StoreError, StoreProblem

FULL = "free some space there: nothing that was accepted is lost, and the same call succeeds then"
UNREACHABLE = "see whether the server runs and the URL is right; the same call succeeds when it is back"

_OF_SQLITE: dict[int, tuple[StoreProblem, str, str]] = {
    sqlite3.SQLITE_FULL: ("full", "the disk is full", FULL),
    sqlite3.SQLITE_READONLY: (
        "unwritable",
        "it cannot be written",
        "give this user the right to write it and its folder",
    ),
    sqlite3.SQLITE_PERM: ("unwritable", "it cannot be written", "give this user the right to write it and its folder"),
    sqlite3.SQLITE_CANTOPEN: (
        "unwritable",
        "it cannot be opened or made",
        "name a folder that this user may write, with `data` or `database`",
    ),
    sqlite3.SQLITE_NOTADB: ("no_database", "it is no SQLite database", "name another file, or move this one away"),
    sqlite3.SQLITE_CORRUPT: (
        "no_database",
        "it is damaged",
        "put the backup in its place, or move it away and start anew",
    ),
}


def explained(error: BaseException, place: str, patience_s: float) -> StoreError:
    """The error of the store that an error of SQLAlchemy, of a driver or of the file system means."""
    if isinstance(error, StoreError):
        return error
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    if is_locked(cause):
        remedy = (
            "look for a program that holds a transaction open in it (a backup, a shell); the same call succeeds then"
        )
        return StoreError(place, "locked", f"another process has locked it for more than {patience_s:g} s", remedy)
    if sqlstate(cause) == "25006":  # read_only_sql_transaction
        return StoreError(place, "unwritable", "the server takes no writes", "name the primary server, not its replica")
    if sqlstate(cause) == "53100":  # disk_full
        return StoreError(place, "full", "the disk of the server is full", FULL)
    if isinstance(cause, OSError):
        if cause.errno in (28, 122):  # ENOSPC, EDQUOT
            return StoreError(place, "full", "the disk is full", FULL)
        return StoreError(place, "unwritable", str(cause.strerror or cause), "name a folder that this user may write")
    if isinstance(cause, sqlite3.Error):
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF  # without the extended part
        if code in _OF_SQLITE:
            return StoreError(place, *_OF_SQLITE[code])
        if code == sqlite3.SQLITE_IOERR:
            return StoreError(
                place, "unwritable", f"the disk fails ({cause})", "look at the machine's log of disk errors"
            )
    if is_disconnected(error):
        return StoreError(place, "unreachable", f"it does not answer ({_first_line(cause)})", UNREACHABLE)
    said = f"{type(cause).__name__}: {_first_line(cause)}"
    return StoreError(place, "unknown", said, "please report this with the log around it")


def is_locked(error: BaseException) -> bool:
    """Whether somebody else holds a lock for longer than was waited."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    if isinstance(cause, sqlite3.Error):
        return getattr(cause, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    return sqlstate(cause) == "55P03"  # lock_not_available


def is_disconnected(error: BaseException) -> bool:
    """Whether the connection was lost or never made, so that another one may succeed."""
    if not isinstance(error, DBAPIError):
        return False
    state = sqlstate(error.orig)
    # 08: connection exceptions. 57P01 to 57P03: the server is shut down, crashed, or starts. 53300: too many clients.
    known = state[:2] == "08" or state in ("57P01", "57P02", "57P03", "53300")
    of_driver = type(error.orig).__module__.startswith("psycopg") and isinstance(error, OperationalError) and not state
    return error.connection_invalidated or known or of_driver


def sqlstate(error: BaseException | None) -> str:
    """Of PostgreSQL's errors; empty for others."""
    return getattr(error, "sqlstate", None) or ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
