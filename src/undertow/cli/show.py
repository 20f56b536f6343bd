"""Pictures in the terminal: as sixels, by Kitty's protocol, or in colored half blocks, whichever it can."""

import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from undertow.extras import is_installed, optional_package, require_packages

if TYPE_CHECKING:
    from PIL import Image

MODULE, PACKAGE = "textual_image", "textual-image"

ShowHere = Annotated[
    bool | None,
    typer.Option(
        "--show/--no-show",
        help="Draw what was made into the terminal too.",
        show_default="where it can",
        rich_help_panel="Output",
    ),
]

COLUMNS = 40
"""Width of a picture in characters."""

MOST = 4
"""Pictures of one command that are shown: more would scroll the first ones away."""


def can_show() -> bool:
    """Whether a person looks at standard output, in a terminal that has colors and a size. Its abilities are asked for
    through standard input, so that must be the terminal too."""
    if sys.__stdin__ is None or sys.__stdout__ is None or not (sys.__stdin__.isatty() and sys.__stdout__.isatty()):
        return False
    return os.get_terminal_size(sys.__stdout__.fileno()).columns > 0 and Console().color_system is not None


def require_show() -> None:
    """Errors: `MissingDependency` without the package that draws into terminals."""
    require_packages("terminal", {MODULE: PACKAGE})


def could_show() -> bool:
    """Whether pictures would be drawn if the package were there."""
    return can_show() and not is_installed(MODULE)


def show(pictures: "Sequence[Image.Image]", columns: int = COLUMNS) -> None:
    """Draws the first few pictures into the terminal, at most so many characters wide. Nothing is drawn where
    `can_show` says no, and without the package for it."""
    if not can_show() or not is_installed(MODULE):
        return
    logging.getLogger("textual_image").setLevel(logging.ERROR)  # what a terminal cannot do is no news to its user
    with optional_package(PACKAGE, "terminal"):
        from textual_image.renderable import Image as Renderable  # asks the terminal what it can, when imported

    console = Console()
    for picture in pictures[:MOST]:
        console.print(Renderable(picture, width=min(columns, console.width), height="auto"))
