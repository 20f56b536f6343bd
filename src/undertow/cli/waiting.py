"""A line of life while something slow goes on."""

from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console


@contextmanager
def waiting(console: Console, what: str) -> Generator[None]:
    """Says what takes time before it begins: in a terminal for as long as it lasts, elsewhere as a line.

    What is slow to import is imported inside, so that there is a sign of life within half a second.
    """
    if console.is_interactive:
        with console.status(what):
            yield
    else:
        console.print(what, markup=False, highlight=False, soft_wrap=True)
        yield
