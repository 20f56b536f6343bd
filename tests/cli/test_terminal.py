"""Text from files, metadata and prompts cannot take over the terminal that shows it."""

import io

import pytest
from rich.progress import Progress
from rich.table import Table

from undertow.cli.terminal import SafeConsole, visible

HOSTILE = "a\x1b]0;title\x1b[2J\x9b31mb\u202ec :cat: [red]d[/red]"
SHOWN = "a\\x1b]0;title\\x1b[2J\\x9b31mb\\u202ec :cat:"


def printed(*what: object, **how: object) -> str:
    console = SafeConsole()
    console.file = io.StringIO()
    console.print(*what, soft_wrap=True, **how)
    return console.file.getvalue()


def test_controls_are_written_out_and_colons_stay():
    assert printed(HOSTILE, markup=False, highlight=False) == f"{SHOWN} [red]d[/red]\n"
    table = Table.grid()
    table.add_row(HOSTILE)
    assert SHOWN in printed(table).replace("\n", "")


@pytest.mark.parametrize("text", ["two\nlines\tand a tab", "größer 猫 🐱 é"])
def test_other_text_is_left_alone(text: str):
    assert visible(text) == text


def test_a_bar_still_moves():
    """rich's own control codes are not text."""
    console = SafeConsole()
    console.file, console._force_terminal = io.StringIO(), True
    with Progress(console=console) as progress:
        progress.add_task("drawing\x1b[2J")
    assert "drawing\\x1" in console.file.getvalue()
    assert "drawing\x1b" not in console.file.getvalue()
    assert "\x1b[" in console.file.getvalue()
