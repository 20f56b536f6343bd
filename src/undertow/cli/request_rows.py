"""Fields of a stored request as rows of a table: one for each adapter and region, with what differs from the defaults.

The request is JSON from whoever wrote the picture, so that any value may stand anywhere.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from undertow.adapters.adapter import Adapter
from undertow.adapters.stack import AdapterStack
from undertow.engine.named_files import file_name, listed, request_adapters
from undertow.engine.parts import Region

Row = tuple[str, str]

DEEPEST = 8
"""Lists within lists that are shown."""


def request_rows(request: Mapping[str, Any]) -> Iterator[Row]:
    """Names and values, as a reader takes them."""
    for name, value in request.items():
        if name == "adapters" and _is_several(value):
            yield from _adapter_rows(request)
        elif name == "regions" and _is_several(value):
            yield from (_region_row(one) for one in listed(value))
        else:
            yield name, value_in_words(value)


def value_in_words(value: Any, depth: int = 0) -> str:
    """JSON's value in short: a picture by its size, a part by what is set in it. depth: of lists around it."""
    match value:
        case list() | dict() if depth == DEEPEST:
            return "..."
        case {"size": [width, height], "sha256": _, **rest}:
            return f"{width}x{height}, {'stored here' if 'png' in rest else 'not stored'}"
        case [*entries]:
            return ", ".join(value_in_words(one, depth + 1) for one in entries)
        case {**fields} if fields:
            return "; ".join(_settings(fields, {}, depth=depth + 1))
        case float():
            return str(value).removesuffix(".0")
        case _:
            return str(value)


def _adapter_rows(request: Mapping[str, Any]) -> Iterator[Row]:
    yield from (_adapter_row(one) for one in request_adapters(request))
    stack = request["adapters"]
    if isinstance(stack, Mapping) and (rule := "; ".join(_settings(stack, AdapterStack().to_json(), "adapters"))):
        yield "stack", rule


def _adapter_row(adapter: Mapping[str, Any]) -> Row:
    said = _settings(adapter, Adapter("").to_json(), "source", "scale")
    return f"adapter {_source(adapter)}", "; ".join((f"at {_scale(adapter)}", *said))


def _region_row(region: Any) -> Row:
    if not isinstance(region, Mapping):
        return "region", value_in_words(region)
    said = _settings(region, Region(prompt="", box=(0, 0, 1, 1)).to_json(), "prompt", "box", "adapters")
    for adapter in request_adapters(region):
        name, how = _adapter_row(adapter)
        said = (*said, f"{name} {how}")
    box = ",".join(map(value_in_words, listed(region.get("box"))))
    return f"region {box}", "; ".join((value_in_words(region.get("prompt")), *said))


def _settings(given: Mapping[str, Any], plain: Mapping[str, Any], *told: str, depth: int = 0) -> tuple[str, ...]:
    """What differs from `plain`, in words. told: fields that are told otherwise."""
    return tuple(
        f"{name.replace('_', ' ')} {value_in_words(value, depth)}"
        for name, value in given.items()
        if name not in told and value != plain.get(name)
    )


def _source(adapter: Mapping[str, Any]) -> str:
    return file_name(str(adapter.get("source")))


def _scale(adapter: Mapping[str, Any]) -> str:
    scale = adapter.get("scale", 1.0)
    return ",".join(map(value_in_words, listed(scale))) or value_in_words(scale)


def _is_several(value: Any) -> bool:
    return isinstance(value, list | tuple | Mapping)
