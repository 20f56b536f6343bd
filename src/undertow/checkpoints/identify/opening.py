"""Opens a checkpoint from what a user gives: a file, a folder or a Hub id."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from undertow.checkpoints.files.locate import locate
from undertow.checkpoints.identify.checkpoint import Checkpoint, OpenOptions, open_file
from undertow.checkpoints.identify.part_folder import Wanted, is_autoencoder, open_part_folder
from undertow.checkpoints.identify.pipeline_folder import open_folder


@contextmanager
def open_checkpoint(source: str | Path, options: OpenOptions | None = None) -> Generator[Checkpoint]:
    """Opens the checkpoint at `source` until the end of the block.

    Errors: every kind of `CheckpointError`, `ConfigError`.
    """
    options = OpenOptions() if options is None else options
    path = locate(source, variant=options.variant)
    if path.is_dir() and is_autoencoder(path):
        yield open_part_folder(path, "vae", options)
    elif path.is_dir():
        yield open_folder(path, options)
    else:
        with open_file(path, options) as checkpoint:
            yield checkpoint


@contextmanager
def open_parts(source: str | Path, wanted: Wanted, options: OpenOptions) -> Generator[Checkpoint]:
    """Opens the VAE or the text encoders at `source` until the end of the block. A folder needs no U-Net.

    Errors: every kind of `CheckpointError`, `ConfigError`.
    """
    path = locate(source, variant=options.variant)
    if path.is_dir():
        yield open_part_folder(path, wanted, options)
    else:
        with open_file(path, options) as checkpoint:
            yield checkpoint
