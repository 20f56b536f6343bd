"""Adapter files in memory: each read once, known by its contents, forgotten when others need the room."""

import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Generic, Protocol, TypeVar, runtime_checkable
from weakref import WeakValueDictionary

from undertow.adapters.files.opened import files_to_read

LIBRARY_BYTES = 2 * 2**30
"""Memory for files that are not in use at the moment."""

Stamp = tuple[tuple[str, int, int], ...]


@runtime_checkable
class LoadedAdapter(Protocol):
    """An adapter file in memory. path: where it was read from. content_hash: SHA-256 of the files it was read from;
    files with equal hashes are the same adapter. title: what it is, for messages."""

    @property
    def path(self) -> Path: ...
    @property
    def content_hash(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def title(self) -> str: ...


AnyLoaded = TypeVar("AnyLoaded", bound=LoadedAdapter)


class Library(Generic[AnyLoaded]):
    """A cache of adapter files, keyed by their contents. read: opens and reads a file. budget_bytes: how much may stay
    in memory; the file that was requested last always stays.

    A file that was overwritten is read again; files with equal contents share one entry.
    """

    def __init__(self, read: Callable[[str | Path], AnyLoaded], budget_bytes: int = LIBRARY_BYTES):
        self._read = read
        self._budget_bytes = budget_bytes
        self._hashes: dict[Stamp, str] = {}
        self._held: OrderedDict[str, AnyLoaded] = OrderedDict()
        self._in_use: WeakValueDictionary[str, AnyLoaded] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def size_bytes(self) -> int:
        """Memory of all cached files."""
        return sum(held.size_bytes for held in self._held.values())

    def forget(self) -> None:
        """Empties the cache: what is in use lives on where it is used, and is found there; everything else is read
        again when needed."""
        self._held.clear()

    def get(self, source: str | Path) -> AnyLoaded:
        """The contents of a file. Errors: those of `read`, which leave the cache unchanged."""
        stamp = _stamp(source)
        content = self._hashes.get(stamp) if stamp is not None else None
        held = self._in_use.get(content) if content is not None else None
        if held is None:
            held = self._read(source)
            held = self._in_use.setdefault(held.content_hash, held)
            if stamp is not None:
                self._hashes[stamp] = held.content_hash
        self._held[held.content_hash] = held
        self._held.move_to_end(held.content_hash)
        while self.size_bytes > self._budget_bytes and len(self._held) > 1:
            self._held.popitem(last=False)
        return held


def _stamp(source: str | Path) -> Stamp | None:
    """Identifies the current version of a file, or of what may be read in a folder; `None` for what is not on this
    machine."""
    path = Path(source)
    if not path.exists():
        return None
    files = [path] if path.is_file() else files_to_read(path)
    found = ((file, os.stat(file)) for file in files)
    return tuple((str(file.resolve()), status.st_size, status.st_mtime_ns) for file, status in found)
