"""Every option of every verb arrives where it belongs, with its value, and leaves the rest as it is."""

import pytest
import typer

from tests.cli.options import (
    comparing,
    diagnosing,
    drawing,
    exporting,
    files,
    generate,
    hints,
    mapping,
    measuring,
    pixels,
    planning,
    serving,
    training,
)
from tests.cli.options.arrival import Case, Command
from tests.cli.options.checks import (
    cases,
    check_case,
    check_defaults,
    check_every_option_has_a_case,
    check_threads,
    leaves,
)
from undertow.cli.app import Settings, _build
from undertow.cli.verbs import VERBS

COMMANDS: tuple[Command, ...] = tuple(
    command
    for part in (
        generate,
        comparing,
        diagnosing,
        drawing,
        exporting,
        files,
        hints,
        mapping,
        pixels,
        training,
        measuring,
        planning,
        serving,
    )
    for command in part.COMMANDS
)
TYPED = typer.main.get_command(_build(VERBS, Settings()))
LEAVES = dict(leaves(TYPED))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.title)
def test_defaults_arrive(command: Command, monkeypatch, tmp_path):
    check_defaults(command, monkeypatch, tmp_path)


@pytest.mark.parametrize(("command", "case"), cases(COMMANDS))
def test_an_option_arrives_and_changes_nothing_else(command: Command, case: Case, monkeypatch, tmp_path, capsys):
    check_case(command, case, monkeypatch, tmp_path, capsys)


@pytest.mark.parametrize("verb", LEAVES, ids=" ".join)
def test_every_option_of_every_verb_has_a_case(verb: tuple[str, ...]):
    check_every_option_has_a_case(verb, LEAVES[verb], COMMANDS)


@pytest.mark.parametrize("verb", LEAVES, ids=" ".join)
def test_a_number_of_threads_is_refused_before_torch_is_asked(verb: tuple[str, ...]):
    check_threads(LEAVES[verb])


def test_the_options_before_the_verb_are_those_of_test_app():
    assert [name for parameter in TYPED.params for name in parameter.opts] == [
        "--debug",
        "--version",
        "--install-completion",
        "--show-completion",
    ]
