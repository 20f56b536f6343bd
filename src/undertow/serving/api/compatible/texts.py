"""Numbers and booleans that a client writes as text: in a form everything is, and A1111 takes them in JSON too."""

import re
from collections.abc import Mapping
from types import NoneType
from typing import Any, get_args, get_origin

from undertow.records import Record, annotations

_WHOLE = re.compile(r"[+-]?[0-9]{1,20}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,3})?")
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def without_texts(record: type[Record], given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields as a record takes them. Text that is no such value stays, and so the record refuses it by name."""
    known = annotations(record)
    return {name: read_text(value, kinds_of(known[name])) if name in known else value for name, value in given.items()}


def read_text(value: Any, kinds: set[Any]) -> Any:
    """A value that is to be of these types. 0 and 1 may stand for a boolean as well."""
    if kinds == {bool}:
        return _BOOLEANS.get(str(value).strip().lower(), value) if isinstance(value, str | int) else value
    if isinstance(value, str) and kinds <= {int, float}:
        text = value.strip()
        if _WHOLE.fullmatch(text):
            return int(text)
        if float in kinds and _NUMBER.fullmatch(text):
            return float(text)
    return value


def kinds_of(annotation: Any) -> set[Any]:
    """The plain types that a field may have, beside `None`, and the words."""
    if get_origin(annotation) is None:
        return {annotation} - {NoneType}
    arguments = get_args(annotation)
    inside = arguments[:1] if hasattr(annotation, "__metadata__") else arguments
    return set().union(*(kinds_of(one) for one in inside))
