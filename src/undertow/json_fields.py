"""Fields of other tools' JSON configs, read with their types: what is not of its type is refused by its name.

JSON knows numbers that are none here (NaN, Infinity, 1e999), and Python takes true for a whole number; neither passes.
Errors: `ConfigError`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from undertow.errors import ConfigError

Json = Mapping[str, Any]


def whole(json: Json, field: str, default: int | None = None) -> int:
    """A whole number. default: where the field is absent; `None` requires it."""
    return _read(json, field, default, is_whole, "must be a whole number")


def optional_whole(json: Json, field: str, default: int | None = None) -> int | None:
    """A whole number or null."""
    return _read(json, field, default, lambda value: value is None or is_whole(value), "must be a whole number or null")


def number(json: Json, field: str, default: float | None = None) -> float:
    """A finite number. default: where the field is absent; `None` requires it."""
    return float(_read(json, field, default, is_number, "must be a number"))


def flag(json: Json, field: str, default: bool) -> bool:
    """true or false."""
    return _read(json, field, default, lambda value: isinstance(value, bool), "must be true or false")


def text(json: Json, field: str, default: str | None = None) -> str:
    """A text. default: where the field is absent; `None` requires it."""
    return _read(json, field, default, lambda value: isinstance(value, str), "must be a text")


def numbers(json: Json, field: str) -> tuple[float, ...] | None:
    """Finite numbers; `None` where the field is absent or null."""
    value = json.get(field)
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not all(map(is_number, value)):
        raise ConfigError(field, value, "must be a list of numbers")
    return tuple(map(float, value))


def mapping(json: Json, field: str, default: Json) -> Json:
    """A JSON object."""
    return _read(json, field, default, lambda value: isinstance(value, Mapping), "must be an object")


def is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:  # a whole number of more than 308 digits
        return False


def _read(json: Json, field: str, default: object, fits: Callable[[Any], bool], rule: str) -> Any:
    value = json.get(field, default)
    if not fits(value):
        raise ConfigError(field, value, rule)
    return value
