"""The site's first page leads to everything; what `mkdocs build --strict` cannot see."""

import re
from pathlib import Path

import yaml

DOCS = Path(__file__).parents[2] / "docs"
INDEX = (DOCS / "index.md").read_text()


def pages(folder: str) -> set[str]:
    return {path.relative_to(DOCS).as_posix() for path in (DOCS / folder).glob("*.md")}


def test_the_first_page_links_to_every_guide_and_every_result():
    linked = set(re.findall(r"\]\((\S+\.md)\)", INDEX))
    assert pages("guides") | pages("results") <= linked


def test_the_first_page_has_a_picture_an_installation_and_a_command():
    (picture,) = re.findall(r"!\[[^]]+\]\((\S+)\)", INDEX)
    assert (DOCS / picture).is_file()
    block = INDEX.split("```bash\n")[1].split("```")[0].splitlines()
    assert block[0].startswith("pip install ")
    assert block[1].startswith("undertow generate ")


def test_code_and_tables_are_wrapped_where_they_are_too_wide():
    """Cut at the side they cannot be read on paper, nor noticed on a screen that hides its scroll bars."""

    class Loader(yaml.SafeLoader):
        """Passes over Python's own tags."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)
    config = yaml.load((DOCS.parent / "mkdocs.yml").read_text(), Loader)
    (sheet,) = config["extra_css"]
    rules = (DOCS / sheet).read_text()
    assert "pre > code { white-space: pre-wrap" in rules
