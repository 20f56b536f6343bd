"""Sentences for command lines that cannot be read: what was typed, what was expected, and what helps."""

import re
from collections.abc import Sequence
from difflib import get_close_matches

import typer

from undertow.cli.other_names import called_here, value_called_here

_INVALID = re.compile(r"Invalid value for '(?P<option>[^']+)'[^:]*: (?:Value error, )?(?P<problem>.*)")
_NO_CHOICE = re.compile(r"'(?P<value>.*)' is not one of (?P<choices>.*)")
_EXPECTED = (
    (re.compile(r"Input should be greater than or equal to (\S+)"), r"at least \1"),
    (re.compile(r"Input should be less than or equal to (\S+)"), r"at most \1"),
    (re.compile(r"Input should be a valid integer.*"), "a whole number"),
    (re.compile(r"Input should be a valid number.*"), "a number"),
)
"""What typer says of a value, and what was expected."""


SHORT = 3
"""Letters of words that are near to others by chance: tpu is no misspelled cpu."""


def usage_sentence(error: typer.TyperException, program: str, arguments: Sequence[str]) -> str:
    """What is wrong with a command line, in one line; nothing where help was the answer. arguments: as they were
    typed."""
    context = getattr(error, "ctx", None)
    command = program if context is None else context.command_path
    typed, said = getattr(error, "option_name", None), " ".join(error.format_message().split()).rstrip(".")
    if typed is not None and context is not None:
        known = [option for parameter in context.command.params for option in parameter.opts]
        if (ours := called_here(typed, known)) is not None:
            said = f"No such option: {typed}; here it is called {ours}"
    invalid = _INVALID.fullmatch(said)
    said = said if invalid is None else _of_value(invalid, arguments)
    return f"{said}{'' if said.endswith('?') else ';'} try '{command} --help'" if said else ""


def _of_value(invalid: re.Match[str], arguments: Sequence[str]) -> str:
    option, problem = invalid["option"], invalid["problem"]
    choice = _NO_CHOICE.fullmatch(problem)
    if choice is not None:
        value, choices = choice["value"], choice["choices"].replace("'", "")
        ours = value_called_here(value, choices.split(", "))
        near = get_close_matches(value.lower(), choices.split(", "), n=1) if len(value) > SHORT else []
        called = f"; here it is called {ours}" if ours is not None else f"; did you mean {near[0]}?" if near else ""
        return f"{option} is {value!r}, expected one of {choices}{called}"
    expected = expectation(problem)
    if expected is None:
        return f"{option}: {problem}"
    value = _typed(option, arguments)
    return f"{option} is {'given' if value is None else repr(value)}, expected {expected}"


def expectation(said: str) -> str | None:
    """What typer expects of a value, by what it says of one that is not so; `None` where that is not known."""
    invalid = _INVALID.fullmatch(" ".join(said.split()).rstrip("."))
    problem = said if invalid is None else invalid["problem"]
    if (choice := _NO_CHOICE.fullmatch(problem)) is not None:
        return f"one of {choice['choices']}".replace("'", "")
    found = ((pattern.fullmatch(problem), expected) for pattern, expected in _EXPECTED)
    return next((match.expand(expected) for match, expected in found if match is not None), None)


def _typed(option: str, arguments: Sequence[str]) -> str | None:
    """The last value of an option on a command line."""
    found = None
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == option:
            found = value if equals else next(iter(arguments[place + 1 :]), None)
    return found
