"""Finds a model's local path from what a user gives: a file, a folder or a Hub id."""

from pathlib import Path

from undertow.checkpoints.files.hub import fetch, is_hub_id
from undertow.errors import UnknownCheckpoint


def locate(source: str | Path, *, variant: str | None = None) -> Path:
    """The local path of a source: the path itself if it exists, otherwise the download of that Hub id.

    Errors: `UnknownCheckpoint`.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    # What begins like a path, or does not look like owner/name, was not meant as a Hub id.
    if str(source).startswith((".", "/", "~")) or not is_hub_id(str(source)):
        remedy = "give a .safetensors file, a diffusers folder or a Hub id (owner/name)"
        raise UnknownCheckpoint(source, "no such file or folder", remedy)
    return fetch(str(source), variant=variant)
