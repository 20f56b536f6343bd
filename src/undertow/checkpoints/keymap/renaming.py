"""A two-way table of module names."""

from collections.abc import Iterable
from typing import NamedTuple


class Pair(NamedTuple):
    """One module's two names. inner: translates the names inside it; without it they are the same on both sides."""

    foreign: str
    ours: str
    inner: "Renaming | None" = None


class Renaming:
    """Translates tensor names by the longest pair that matches a whole dotted prefix."""

    def __init__(self, pairs: Iterable[Pair]):
        self._by_foreign: dict[str, tuple[str, Renaming | None]] = {}
        self._by_ours: dict[str, tuple[str, Renaming | None]] = {}
        for pair in pairs:
            self._by_foreign[pair.foreign] = (pair.ours, pair.inner)
            self._by_ours[pair.ours] = (pair.foreign, pair.inner)

    def to_ours(self, name: str) -> str | None:
        """Our name of a foreign tensor; `None` when no rule covers it."""
        found = _longest_prefix(self._by_foreign, name)
        if found is None:
            return None
        ours, inner, rest = found
        return _join(ours, rest if inner is None or rest is None else inner.to_ours(rest), rest)

    def to_foreign(self, name: str) -> str | None:
        """The foreign name of one of our tensors; `None` when no rule covers it."""
        found = _longest_prefix(self._by_ours, name)
        if found is None:
            return None
        foreign, inner, rest = found
        return _join(foreign, rest if inner is None or rest is None else inner.to_foreign(rest), rest)


def same(*names: str) -> list[Pair]:
    """Pairs of modules with the same name on both sides."""
    return [Pair(name, name) for name in names]


def _longest_prefix(
    table: dict[str, tuple[str, Renaming | None]], name: str
) -> tuple[str, Renaming | None, str | None] | None:
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        entry = table.get(".".join(parts[:count]))
        if entry is not None:
            return *entry, ".".join(parts[count:]) or None
    return None


def _join(module: str, translated: str | None, rest: str | None) -> str | None:
    if rest is None:
        return module
    return None if translated is None else f"{module}.{translated}"
