"""Where something may be written: never over what it is made from."""

from collections.abc import Iterable
from pathlib import Path

from undertow.errors import InvalidInput


def require_elsewhere(argument: str, destination: Path, sources: Iterable[str | Path]) -> None:
    """Refuses a destination that is one of `sources`, directly or by a symbolic or hard link, or that lies in a folder
    among them. What is not on this machine, such as a Hub id, is passed over.

    argument: what the destination is called in the message. Errors: `InvalidInput`.
    """
    place = destination.expanduser()
    for source in (Path(source).expanduser() for source in sources):
        if not source.exists():
            continue
        same = place.exists() and place.samefile(source)
        inside = source.is_dir() and place.resolve().is_relative_to(source.resolve())
        if same or inside:
            read = f"{'in ' if inside and not same else ''}{source}, which is read for it"
            raise InvalidInput(argument, repr(str(destination)), f"another place than {read}", "name another one")
