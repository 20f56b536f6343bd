"""What every option of a command line must do: arrive with its value, change nothing else, and have a case."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.cli.options.arrival import ABSENT, Case, Command, Places


def check_defaults(command: Command, patch: pytest.MonkeyPatch, folder: Path) -> None:
    code, arrived = command.run(patch, folder)
    assert code == 0
    assert not _differences(arrived, command.expected(Case(typed=())))


def check_case(
    command: Command, case: Case, patch: pytest.MonkeyPatch, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its value is never the default, which would pass for an option that is ignored."""
    code, arrived = command.run(patch, folder, case.typed)
    error = capsys.readouterr().err
    if case.refused is not None:
        assert code == 2
        assert case.refused in " ".join(error.split())
        return
    assert code == 0, error
    differences = _differences(arrived, command.expected(case))
    assert not differences, differences
    assert case.changes
    assert not [place for place, value in case.changes.items() if value == command.arrives.get(place, ABSENT)]


def _differences(arrived: Places, expected: Places) -> dict[str, tuple[object, object]]:
    """What arrived and what should have, where they differ."""
    places = sorted(arrived.keys() | expected.keys())
    pairs = {place: (arrived.get(place, ABSENT), expected.get(place, ABSENT)) for place in places}
    return {place: (found, right) for place, (found, right) in pairs.items() if found != right}


def leaves(command: Any, verb: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every verb that can be typed, with what typer knows of it."""
    children = getattr(command, "commands", None)
    if children is None:
        yield verb, command
        return
    for name, child in children.items():
        yield from leaves(child, (*verb, name))


def check_every_option_has_a_case(verb: tuple[str, ...], leaf: Any, commands: Sequence[Command]) -> None:
    of_verb = [command for command in commands if command.verb == verb]
    arguments = {name for command in of_verb for name in command.arguments}
    options = {name for command in of_verb for case in command.cases for name in case.options}
    for parameter in leaf.params:
        if parameter.param_type_name == "argument":
            assert parameter.name in arguments
        else:
            long = {name for name in (*parameter.opts, *parameter.secondary_opts) if name.startswith("--")}
            assert long <= options


def check_threads(leaf: Any) -> None:
    """What PyTorch takes for a number of threads, and what a machine can start."""
    for parameter in leaf.params:
        if parameter.name == "threads":
            assert (parameter.min, parameter.max) == (1, 1024)


def cases(commands: Sequence[Command]) -> list[Any]:
    """Every case of the commands, for `pytest.mark.parametrize`."""
    return [
        pytest.param(command, case, id=f"{command.title} {' '.join(case.typed)}")
        for command in commands
        for case in command.cases
    ]
