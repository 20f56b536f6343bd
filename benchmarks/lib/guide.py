"""A guide's examples, run as the tests run them, and the pictures that they write beside each other."""

import contextlib
import os
import re
import shlex
from collections.abc import Generator
from pathlib import Path

from PIL import Image

from undertow.cli import main
from undertow.inspection.contact_sheet import Cell, contact_sheet

BLOCK = re.compile(
    r"^(?P<run><!-- run -->\n+)?```(?P<language>python|bash)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


def run_examples(page: Path, folder: Path, until: str | None = None) -> None:
    """Runs a page's Python and its marked commands in a folder. until: the heading to stop before. Errors: what they
    raise; `RuntimeError`."""
    text, namespace = page.read_text(encoding="utf-8"), {"__name__": "__main__"}
    text = text if until is None else text[: text.index(until)]
    with inside(folder):
        for block in BLOCK.finditer(text):
            if block["language"] == "python":
                exec(compile(block["text"], page, "exec"), namespace)
            for command in re.findall(r"^undertow (.*)$", block["text"], re.MULTILINE) if block["run"] else ():
                if main(shlex.split(command)) != 0:
                    raise RuntimeError(command)


def strip(pictures: dict[str, Path | Image.Image]) -> Image.Image:
    """Pictures in one row with their names."""
    images = [each if isinstance(each, Image.Image) else Image.open(each) for each in pictures.values()]
    return contact_sheet([[Cell(image=image) for image in images]], rows=[""], columns=list(pictures))


def twice(picture: Path) -> Image.Image:
    """A picture beside itself, to show where its edges meet."""
    one = Image.open(picture).convert("RGB")
    both = Image.new("RGB", (2 * one.width, one.height))
    for left in (0, one.width):
        both.paste(one, (left, 0))
    return both


@contextlib.contextmanager
def inside(folder: Path) -> Generator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
