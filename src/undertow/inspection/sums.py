"""What probes add up, of those evaluations alone that pictures are drawn with."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from undertow.engine.rows import Row

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


@dataclass(kw_only=True, eq=False)
class Sums(Generic[Key, Value]):
    """Values by key, joined two at a time. What the newest evaluation of each row gave stays apart until the next one
    of that picture, branch and window, since a row may be evaluated once more."""

    join: Callable[[Value, Value], Value]
    _settled: dict[Key, Value] = field(default_factory=dict, init=False, repr=False)
    _newest: dict[Hashable, tuple[Row, dict[Key, Value]]] = field(default_factory=dict, init=False, repr=False)

    def begin(self, rows: Sequence[Row]) -> None:
        """An evaluation of these rows begins; the one before it counts."""
        for row in rows:
            place = _place(row)
            _, newest = self._newest.get(place, (row, {}))
            for key, value in newest.items():
                self._settled[key] = self._joined(self._settled, key, value)
            self._newest[place] = (row, {})

    def forget(self, rows: Sequence[Row]) -> None:
        """The newest evaluation of these rows does not count."""
        for row in rows:
            seen, _ = self._newest.get(_place(row), (None, {}))
            if seen is row:
                del self._newest[_place(row)]

    def add(self, row: Row, key: Key, value: Value) -> None:
        """Joins a value of a row's evaluation to those that it gave already."""
        newest = self._newest[_place(row)][1]
        newest[key] = self._joined(newest, key, value)

    def put(self, row: Row, key: Key, value: Value) -> None:
        """Takes the place of what a row's evaluation gave already."""
        self._newest[_place(row)][1][key] = value

    def items(self) -> Iterator[tuple[Key, Value]]:
        """Of all evaluations up to now, in the order in which keys were first seen."""
        found = dict(self._settled)
        for _, newest in self._newest.values():
            for key, value in newest.items():
                found[key] = self._joined(found, key, value)
        return iter(found.items())

    def _joined(self, values: dict[Key, Value], key: Key, value: Value) -> Value:
        return self.join(values[key], value) if key in values else value


def _place(row: Row) -> Hashable:
    origin = row.origin
    return origin.request, origin.picture, origin.branch, origin.window
