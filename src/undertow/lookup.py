"""Finding an entry of a catalogue by the name a user wrote."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

from undertow.errors import InvalidInput

Entry = TypeVar("Entry")

LONGEST = 100
"""Characters of a name that are compared with others: more are no misspelling."""

SHORT = 12
"""Names that a message may list."""


def look_up(catalogue: Mapping[str, Entry], name: str, argument: str, *, listed_by: str = "") -> Entry:
    """The entry called `name`.

    listed_by: the command that lists the names. Errors: `InvalidInput` offers the nearest names of different entries;
    where none is near it lists a short catalogue, or says what lists a long one.
    """
    if name in catalogue:
        return catalogue[name]
    lists = f"`{listed_by}` lists them" if listed_by else ""
    nearest = _nearest(catalogue, name)
    if nearest:
        asked = f"did you mean {' or '.join(map(repr, nearest))}?"
        raise InvalidInput(argument, repr(name), f"a known {argument}", f"{asked} {lists}".rstrip())
    if len(catalogue) > SHORT and listed_by:
        raise InvalidInput(argument, repr(name), f"a known {argument}", lists)
    raise InvalidInput(argument, repr(name), f"one of {', '.join(catalogue)}")


def _nearest(catalogue: Mapping[str, Entry], name: str) -> list[str]:
    """Up to three names like `name`, in any case, of which no two mean the same entry."""
    spelled: dict[str, str] = {}
    for known in catalogue:
        spelled.setdefault(known.lower(), known)
    found: list[str] = []
    for match in get_close_matches(name.lower(), spelled, n=9, cutoff=0.4):
        if all(catalogue[spelled[match]] is not catalogue[other] for other in found):
            found.append(spelled[match])
    return found[:3]


def did_you_mean(name: str | Path, known: Iterable[str]) -> str:
    """A question to stand before a list of names, where one of them is near, in any case."""
    spelled = {one.lower(): one for one in known}
    near = get_close_matches(str(name)[:LONGEST].lower(), spelled, n=1)
    return f"did you mean {spelled[near[0]]!r}? " if near else ""


def in_seconds(seconds: float) -> str:
    """A time in a sentence, which is never 0 unless it is: 12.3 s, 0.012 s."""
    return f"{seconds:.1f} s" if seconds >= 1 or not seconds else f"{seconds:.2g} s"


def counted(count: int, one: str, many: str | None = None) -> str:
    """A number and its noun: 1 layer, 2 layers. many: the plural where it is not the singular with an s."""
    return f"{count:,} {one}" if count == 1 else f"{count:,} {many or f'{one}s'}"
