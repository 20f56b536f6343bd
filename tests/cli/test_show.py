"""Pictures in the terminal: drawn where a person looks, and nowhere else."""

import os
import subprocess
import sys

import pytest

pty = pytest.importorskip("pty", reason="pseudo terminals are POSIX")
termios = pytest.importorskip("termios", reason="terminals have sizes on POSIX")

CODE = """
from PIL import Image
from undertow.cli.show import show
show([Image.new("RGB", (64, 64), (200, 30, 40))] * {count})
print("end")
"""
ROWS = 20
"""Of text that a square picture of 40 columns takes, two pixels a character."""


def shown(count=1, *, terminal=True, columns=100, **variables):
    """What a child writes, into a pseudo terminal or a pipe."""
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", **variables}
    for name in ("NO_COLOR", "COLUMNS", "LINES"):  # they would overrule the terminal
        environment.pop(name, None)
    command = [sys.executable, "-c", CODE.format(count=count)]
    if not terminal:
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, columns))
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as child:
        os.close(theirs)
        chunks: list[bytes] = []
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # what Linux says when the child has closed its end
                break
            if not chunk:
                break
            chunks.append(chunk)
        assert child.wait() == 0
    os.close(ours)
    return b"".join(chunks).decode()


def test_a_terminal_without_graphics_gets_half_blocks_in_color():
    text = shown()
    assert text.count("▀") == 40 * ROWS
    assert "38;2;200;30;40" in text
    assert "end" in text


def test_no_more_than_four_are_drawn():
    assert shown(6).count("▀") == 4 * 40 * ROWS


def test_nothing_is_drawn_into_a_file_or_a_terminal_without_colors():
    assert shown(terminal=False) == "end\n"
    assert "▀" not in shown(TERM="dumb")


def test_nothing_is_drawn_into_a_terminal_without_a_size():
    """As some containers give: nothing could be laid out in it."""
    assert shown(columns=0).split() == ["end"]


def test_a_narrow_terminal_gets_a_small_picture():
    assert shown(columns=10).count("▀") == 10 * 5
