"""Every option of every verb arrives where it belongs, with its value, and leaves the rest as it is."""

from collections.abc import Iterator
from typing import Any

import pytest
import typer

from tests.cli.options import drawing, files, generate, hints, measuring, pixels, training
from tests.cli.options.arrival import ABSENT, Case, Command
from undertow.cli.app import VERBS, Settings, _build

COMMANDS: tuple[Command, ...] = tuple(
    command for part in (generate, drawing, files, hints, pixels, training, measuring) for command in part.COMMANDS
)
CASES = [
    pytest.param(command, case, id=f"{command.title} {' '.join(case.typed)}")
    for command in COMMANDS
    for case in command.cases
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.title)
def test_defaults_arrive(command: Command, monkeypatch, tmp_path):
    code, arrived = command.run(monkeypatch, tmp_path)
    assert code == 0
    assert arrived == command.expected(Case(typed=()))


@pytest.mark.parametrize(("command", "case"), CASES)
def test_an_option_arrives_and_changes_nothing_else(command: Command, case: Case, monkeypatch, tmp_path, capsys):
    """Its value is never the default, which would pass for an option that is ignored."""
    code, arrived = command.run(monkeypatch, tmp_path, case.typed)
    error = capsys.readouterr().err
    if case.refused is not None:
        assert code == 2
        assert case.refused in " ".join(error.split())
        return
    assert code == 0, error
    assert arrived == command.expected(case)
    assert case.changes
    assert not [place for place, value in case.changes.items() if value == command.arrives.get(place, ABSENT)]


def leaves(command: Any, verb: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every verb that can be typed, with what typer knows of it."""
    children = getattr(command, "commands", None)
    if children is None:
        yield verb, command
        return
    for name, child in children.items():
        yield from leaves(child, (*verb, name))


TYPED = typer.main.get_command(_build(VERBS, Settings()))
LEAVES = dict(leaves(TYPED))


@pytest.mark.parametrize("verb", LEAVES, ids=" ".join)
def test_every_option_of_every_verb_has_a_case(verb: tuple[str, ...]):
    commands = [command for command in COMMANDS if command.verb == verb]
    arguments = {name for command in commands for name in command.arguments}
    options = {name for command in commands for case in command.cases for name in case.options}
    for parameter in LEAVES[verb].params:
        if parameter.param_type_name == "argument":
            assert parameter.name in arguments
        else:
            assert {*parameter.opts, *parameter.secondary_opts} <= options


def test_the_options_before_the_verb_are_those_of_test_app():
    assert [name for parameter in TYPED.params for name in parameter.opts] == ["--debug", "--version"]
