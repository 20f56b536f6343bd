"""Adapter files in memory: each read once, known by its contents, forgotten when others need the room."""

import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from undertow.adapters.lora.file import Lora

LIBRARY_BYTES = 2 * 2**30
"""Memory for files that are not in use at the moment."""

Stamp = tuple[str, int, int]


class Library:
    """read: opens a file. budget_bytes: what may stay in memory; the file that was asked for last always does.

    A file that was written anew is read anew; files with equal contents are one.
    """

    def __init__(self, read: Callable[[str | Path], Lora], budget_bytes: int = LIBRARY_BYTES):
        self._read = read
        self._budget_bytes = budget_bytes
        self._hashes: dict[Stamp, str] = {}
        self._held: OrderedDict[str, Lora] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def size_bytes(self) -> int:
        """Memory of the files held."""
        return sum(lora.size_bytes for lora in self._held.values())

    def get(self, source: str | Path) -> Lora:
        """The file's contents. Errors: those of `read`, which change nothing here."""
        stamp = _stamp(source)
        content = self._hashes.get(stamp) if stamp is not None else None
        lora = self._held.get(content) if content is not None else None
        if lora is None:
            lora = self._read(source)
            lora = self._held.setdefault(lora.content_hash, lora)
            if stamp is not None:
                self._hashes[stamp] = lora.content_hash
        self._held.move_to_end(lora.content_hash)
        while self.size_bytes > self._budget_bytes and len(self._held) > 1:
            self._held.popitem(last=False)
        return lora


def _stamp(source: str | Path) -> Stamp | None:
    """What changes when a file does; `None` for what is no file (a folder, whose files may change)."""
    path = Path(source)
    if not path.is_file():
        return None
    status = os.stat(path)
    return str(path.resolve()), status.st_size, status.st_mtime_ns
