"""From what a user writes (a file, a folder, a Hub id) to an opened checkpoint."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from undertow.checkpoints.checkpoint import Checkpoint, OpenOptions, open_file
from undertow.checkpoints.hub import fetch, is_hub_id
from undertow.checkpoints.pipeline_folder import open_folder
from undertow.errors import UnknownCheckpoint


@contextmanager
def open_checkpoint(source: str | Path, options: OpenOptions | None = None) -> Generator[Checkpoint]:
    """The checkpoint at `source`, for the length of the block.

    Errors: every kind of `CheckpointError`, `ConfigError`.
    """
    options = OpenOptions() if options is None else options
    path = locate(source, variant=options.variant)
    if path.is_dir():
        yield open_folder(path, options)
    else:
        with open_file(path, options) as checkpoint:
            yield checkpoint


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
