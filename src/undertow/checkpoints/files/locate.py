"""From what a user writes (a file, a folder, a Hub id) to a local path."""

from pathlib import Path

from undertow.checkpoints.files.hub import fetch, is_hub_id
from undertow.errors import UnknownCheckpoint


def locate(source: str | Path, *, variant: str | None = None) -> Path:
    """The local path of a source: itself if it exists, else the Hub's copy of that id.

    Errors: `UnknownCheckpoint`.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    # A path that was meant as one says so: it begins like a path, or does not look like owner/name.
    if str(source).startswith((".", "/", "~")) or not is_hub_id(str(source)):
        remedy = "give a .safetensors file, a diffusers folder or a Hub id (owner/name)"
        raise UnknownCheckpoint(source, "no such file or folder", remedy)
    return fetch(str(source), variant=variant)
