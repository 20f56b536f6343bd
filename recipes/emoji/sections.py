"""Parts of a Markdown page between two comments, which are replaced or kept while the rest is written anew."""

import re


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


def _pattern(name: str) -> "re.Pattern[str]":
    return re.compile(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", flags=re.DOTALL)
