"""docs/requirements.md lists every requirement once, and what it calls done points at files that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STATES = {"done", "part", "planned"}
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in (ROOT / "docs/requirements.md").read_text().splitlines()
    if re.match(r"\| [RT]\d+ \|", line)
]
SHOWN = [row for row in ROWS if row[3] != "planned"]


def test_every_requirement_and_every_trap_has_one_row():
    assert [row[0] for row in ROWS] == [f"R{n}" for n in range(1, 206)] + [f"T{n}" for n in range(1, 20)]


def test_rows_are_complete_and_in_a_known_state():
    assert {len(row) for row in ROWS} == {6}
    assert {row[3] for row in ROWS} <= STATES


@pytest.mark.parametrize("row", SHOWN, ids=lambda row: row[0])
def test_what_is_done_says_where_and_how(row):
    """A state other than planned names a test file or a command, and the files it names exist."""
    shown_by = row[5]
    assert re.search(r"tests/|`(undertow|make) ", shown_by), shown_by
    for path in re.findall(r"\b((?:tests|docs|benchmarks)/[\w./-]*\w)", shown_by):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"[\w/]+\.py\b|[\w/]+/(?![\w*])", row[4]):
        assert (ROOT / "src/undertow" / path).exists() or (ROOT / path).exists(), path
