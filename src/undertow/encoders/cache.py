"""A bounded memory that forgets what was not used for longest."""

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock
from typing import Generic, TypeVar

from undertow.errors import InvalidInput

Value = TypeVar("Value")


class RecentlyUsed(Generic[Value]):
    """At most `size` values by key, the recently used ones; safe to use from several threads. 0 keeps nothing."""

    def __init__(self, size: int):
        if size < 0:
            raise InvalidInput("size", size, "0 or more entries")
        self._size = size
        self._entries: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: Hashable) -> Value | None:
        """The value, now the most recently used; or None."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key]

    def keep(self, key: Hashable, value: Value) -> None:
        """Remembers a value, and forgets the least recently used beyond `size`."""
        with self._lock:
            self._entries[key] = value
            self._entries.move_to_end(key)
            while len(self._entries) > self._size:
                self._entries.popitem(last=False)

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._entries.clear()
