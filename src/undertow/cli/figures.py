"""Drawings of numbers that a verb writes beside what it prints."""

from collections.abc import Sequence
from pathlib import Path

from undertow.checkpoints.files.destination import require_elsewhere
from undertow.embedded import embedded_models
from undertow.extras import OF_FIGURES, require_packages
from undertow.pictures.names import FIGURES, require_picture_file


def require_figure(option: str, file: Path, read: Sequence[str] = (), *, overwrite: bool) -> None:
    """Whether it can be drawn and written, before anything is printed. read: the model and the files that it is about.

    Errors: `InvalidInput`, also for a file that is there; `MissingDependency`.
    """
    require_packages("viz", OF_FIGURES)
    require_picture_file(file, option, overwrite=overwrite, endings=FIGURES)
    require_elsewhere(option, file, [embedded_models().get(source, source) for source in read])
