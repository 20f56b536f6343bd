"""Finds a model's local path from what a user gives: a file, a folder or a Hub id."""

from pathlib import Path

from undertow.checkpoints.files.hub import fetch
from undertow.checkpoints.files.place import local_path


def locate(source: str | Path, *, variant: str | None = None) -> Path:
    """The local path of a source: the path itself if it exists, otherwise the download of that Hub id.

    Errors: `UnknownCheckpoint`.
    """
    path = local_path(source)
    return fetch(str(source), variant=variant) if path is None else path
