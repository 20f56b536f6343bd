"""Values of a preset, by the types that TOML gives them: a command line knows text alone, and would read it as numbers,
and numbers as text."""

from typing import Any, get_origin

from undertow.cli.seeds import RANDOM
from undertow.errors import InvalidInput

SEEDS = ("seed", "wildcard-seed")
"""Numbers that a word may stand for, so that they are text on a command line."""


def require_kind(option: str, value: Any, kind: Any, argument: str) -> None:
    """Whether a value has the type that its option wants. option: its name without the dashes. kind: its annotation.
    argument: what a message calls it. Errors: `InvalidInput`."""
    expected = _broken(option, value, kind)
    if expected is not None:
        raise InvalidInput(argument, _as_toml(value), expected)


def _broken(option: str, value: Any, kind: Any) -> str | None:
    """What was expected in place of a value; `None` where nothing is wrong."""
    if get_origin(kind) is list:
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            return None
        return f'a list, such as ["{value}"]' if isinstance(value, str) else 'a list of texts, such as ["a", "b"]'
    if kind is bool:
        return None if isinstance(value, bool) else "true or false, without quotes"
    if option in SEEDS and isinstance(value, str):
        return None if value.strip().lower() in RANDOM else 'a whole number, without quotes, or "random"'
    if kind is int or option in SEEDS:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return None if whole else "a whole number, without quotes"
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return None if number else "a number, without quotes"
    return None if isinstance(value, str) else "text, in quotes"


def _as_toml(value: Any) -> str:
    """As the file says it, where that is not how Python does."""
    return str(value).lower() if isinstance(value, bool) else repr(value)
