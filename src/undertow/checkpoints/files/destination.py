"""Where something may be written: never over what it is made from; over what is there only where that is allowed; and
never where no file can be made, which is said before the long work."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from undertow.errors import InvalidInput
from undertow.pictures.names import require_folder, require_replaceable

ENDINGS: Mapping[str, tuple[str, ...]] = {"ldm": (".safetensors", ".sft"), "gguf": (".gguf",)}
"""Of single files, by their form."""

FORMS = ("diffusers", *ENDINGS)
"""Of checkpoints that are written: a folder, or one file."""


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


def require_destination(destination: Path, form: str, *, overwrite: bool) -> None:
    """Whether a checkpoint can be written there in a form. overwrite: a file that is there may be replaced; a folder
    that holds anything never is. Errors: `InvalidInput`."""
    if form not in FORMS:
        raise InvalidInput("to", repr(form), f"one of {', '.join(map(repr, FORMS))}")
    if form == "diffusers":
        require_new_folder(destination)
        return
    if destination.suffix not in ENDINGS[form]:
        raise InvalidInput("destination", repr(str(destination)), f"a file that ends in {ENDINGS[form][0]}")
    require_replaceable(destination, "destination", overwrite=overwrite)
    require_folder(destination.parent, "destination")


def require_new_folder(folder: Path) -> None:
    """Errors: `InvalidInput` for a file, for a folder that is not empty, and where none can be made."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InvalidInput("destination", repr(str(folder)), "a new or empty folder", "name another, or remove it")
    require_folder(folder.absolute().parent, "destination")
