"""Pictures in the terminal: as sixels, by Kitty's protocol, or in colored half blocks, whichever it can."""

import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from PIL import Image

ShowHere = Annotated[
    bool,
    typer.Option(
        "--show/--no-show", help="Draw what was made into the terminal too, where it can.", rich_help_panel="Output"
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


def show(pictures: "Sequence[Image.Image]", columns: int = COLUMNS) -> None:
    """Draws the first few pictures into the terminal, at most so many characters wide. Nothing is drawn where
    `can_show` says no."""
    if not can_show():
        return
    logging.getLogger("textual_image").setLevel(logging.ERROR)  # what a terminal cannot do is no news to its user
    from textual_image.renderable import Image as Renderable  # asks the terminal what it can, when imported

    console = Console()
    for picture in pictures[:MOST]:
        console.print(Renderable(picture, width=min(columns, console.width), height="auto"))
