"""Trainings without their pictures: a curve takes as long as the whole run of a tiny network."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

_DRAW = Figure.savefig


def _save_blank(_figure: Figure, path: Path, **_options: object) -> None:
    Image.new("RGB", (1, 1), "white").save(path)


@contextmanager
def blank_figures() -> Generator[None]:
    """Within it figures of matplotlib are composed as ever, and saved as one white pixel."""
    with _saving(_save_blank):
        yield


@contextmanager
def drawn_figures() -> Generator[None]:
    """Within it they are drawn, also within `blank_figures`."""
    with _saving(_DRAW):
        yield


@contextmanager
def _saving(save: Callable[..., None]) -> Generator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save)
        yield
