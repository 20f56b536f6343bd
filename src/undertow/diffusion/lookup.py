"""Finding an entry of a catalogue by the name a user wrote."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

from undertow.errors import InvalidInput

Entry = TypeVar("Entry")


def look_up(catalogue: Mapping[str, Entry], name: str, argument: str) -> Entry:
    """The entry called `name`.

    Errors: `InvalidInput` lists the catalogue and offers the nearest names.
    """
    if name in catalogue:
        return catalogue[name]
    nearest = get_close_matches(name.lower(), catalogue, n=3, cutoff=0.4)
    remedy = f"did you mean {' or '.join(repr(match) for match in nearest)}?" if nearest else ""
    raise InvalidInput(argument, repr(name), f"one of {', '.join(catalogue)}", remedy)
