"""docs/requirements.md lists every requirement once, and what it calls done names tests and commands that there are."""

import ast
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from undertow.cli.app import Settings, _build
from undertow.cli.verbs import VERBS

ROOT = Path(__file__).parents[2]
STATES = {"done", "part", "planned"}
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in (ROOT / "docs/requirements.md").read_text().splitlines()
    if re.match(r"\| [RTS]\d+ \|", line)
]
SHOWN = [row for row in ROWS if row[3] != "planned"]
TEST = re.compile(r"`(tests/[\w/.:]+)`")
COMMAND = re.compile(r"`((?:undertow|make) [^`]+)`")


@cache
def node_ids(path: str) -> frozenset[str]:
    """The tests of a file, read from its source: `test_name` or `TestClass::test_name`."""
    if not re.fullmatch(r"tests/(\w+/)*test_\w+\.py", path):
        return frozenset()
    module = ast.parse((ROOT / path).read_text())
    classes = [node for node in module.body if isinstance(node, ast.ClassDef) and node.name.startswith("Test")]
    methods = {f"{node.name}::{name}" for node in classes for name in functions(node)}
    return frozenset(functions(module) | methods)


def functions(node: ast.Module | ast.ClassDef) -> set[str]:
    return {inner.name for inner in node.body if isinstance(inner, ast.FunctionDef) and inner.name.startswith("test")}


def is_test(name: str) -> bool:
    path, _, test = name.partition("::")
    return (ROOT / path).is_file() and test in node_ids(path)


COMMAND_LINE = typer.main.get_command(_build(VERBS, Settings()))
TARGETS = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def is_command(line: str) -> bool:
    """Whether the verb or target exists, with the options that are named."""
    program, *words = shlex.split(line)
    if program == "make":
        return len(words) == 1 and words[0] in TARGETS
    command: Any = COMMAND_LINE
    while words and hasattr(command, "commands"):
        if words[0] not in command.commands:
            return False
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    return {word for word in words if word.startswith("-")} <= known | {"--help"}


def test_every_requirement_and_every_trap_has_one_row():
    assert [row[0] for row in ROWS] == [f"R{n}" for n in range(1, 206)] + [f"T{n}" for n in range(1, 20)] + [
        f"S{n}" for n in range(1, 45)
    ]


def test_rows_are_complete_and_in_a_known_state():
    assert {len(row) for row in ROWS} == {6}
    assert {row[3] for row in ROWS} <= STATES


@pytest.mark.parametrize("row", SHOWN, ids=lambda row: row[0])
def test_what_is_done_says_where_and_how(row):
    """A state other than planned names tests by their node ids, and everything that it names exists."""
    where, shown_by = row[4], row[5]
    tests = TEST.findall(shown_by)
    assert tests
    assert not [name for name in tests if not is_test(name)]
    assert not [line for line in COMMAND.findall(shown_by) if not is_command(line)]
    rest = TEST.sub("", shown_by)
    assert "tests/" not in rest, "a test is named by its node id, between backticks"
    for path in re.findall(r"\b((?:docs|benchmarks)/[\w./-]*\w)", rest):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"[\w/]+\.py\b|[\w/]+/(?![\w*])", where):
        assert (ROOT / "src/undertow" / path).exists() or (ROOT / path).exists(), path


def test_what_is_planned_has_nothing_to_show():
    assert not [row for row in ROWS if row[3] == "planned" and row[5]]


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("tests/docs/test_requirements.py::test_rows_are_complete_and_in_a_known_state", True),
        ("tests/docs/test_requirements.py::is_test", False),
        ("tests/docs/test_requirements.py::test_that_nobody_wrote", False),
        ("tests/docs/test_requirements.py", False),
        ("tests/cli/options/arrival.py::test_no_file_of_tests", False),
        ("tests/test_no_such_file.py::test_a", False),
    ],
)
def test_a_test_is_known_by_its_node_id(name, there):
    assert is_test(name) == there


@pytest.mark.parametrize(
    ("line", "there"),
    [
        ("undertow generate", True),
        ("undertow generate --low-vram --no-flash-attention", True),
        ("undertow train lora --rank", True),
        ("undertow generate --no-such-option", False),
        ("undertow paint", False),
        ("undertow train", True),
        ("make test", True),
        ("make coffee", False),
    ],
)
def test_a_command_is_known_by_its_verb_and_options(line, there):
    assert is_command(line) == there
