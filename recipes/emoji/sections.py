"""Parts of a Markdown page between two comments, which are replaced or kept while the rest is written anew."""

import re
from collections.abc import Sequence
from pathlib import Path

NOTES_SECTION = "tried"
"""The section of a page that people write, and that a new evaluation keeps."""
NO_NOTES = "Nobody has written yet what was tried."


def section(name: str, content: str) -> str:
    """`content` between the comments that mark it."""
    return f"<!-- {name} -->\n{content.strip()}\n<!-- /{name} -->"


def find_section(page: str, name: str) -> str | None:
    """What stands between the comments, or `None` when the page has no such section."""
    match = _pattern(name).search(page)
    return None if match is None else match[1].strip()


def replace_section(page: str, name: str, content: str) -> str:
    """The page with another content of the section. A page without it stays as it is."""
    return _pattern(name).sub(lambda match: section(name, content), page)


def kept_notes(page: Path) -> str:
    """What people have written on a page; `NO_NOTES` where there is none."""
    found = find_section(page.read_text(encoding="utf-8"), NOTES_SECTION) if page.is_file() else None
    return NO_NOTES if found is None else found


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _pattern(name: str) -> "re.Pattern[str]":
    return re.compile(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", flags=re.DOTALL)
