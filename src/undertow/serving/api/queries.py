"""What stands behind the question mark of a path: read with names, types and bounds, and nothing unknown."""

from collections.abc import Collection
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request

from undertow.doors import nearest, shown
from undertow.errors import InvalidInput

LONGEST = 1024


class Query:
    """The parameters of one request. Errors: `InvalidInput` for unknown ones, with a near one."""

    def __init__(self, request: Request, *known: str):
        self._request, self._given = request, request.query_params
        for name in self._given:
            if name not in known:
                raise InvalidInput(name[:100], "given", "a parameter of this path", nearest(name[:100], known))

    def text(self, name: str) -> str | None:
        """A parameter that is given at most once."""
        given = self._given.getlist(name)
        if len(given) > 1:
            raise InvalidInput(name, f"given {len(given)} times", "once")
        if given and (len(given[0]) > LONGEST or "\0" in given[0]):
            raise InvalidInput(name, shown(given[0][:100]), f"text of at most {LONGEST} characters")
        return given[0] if given else None

    def number(self, name: str, usual: int, *, least: int, most: int) -> int:
        """A whole number within bounds."""
        given = self.text(name)
        if given is None:
            return usual
        if not (given.isascii() and given.isdecimal() and len(given) < 10 and least <= int(given) <= most):
            raise InvalidInput(name, repr(given[:100]), f"a whole number from {least} to {most}")
        return int(given)

    def choices(self, name: str, known: Collection[str]) -> list[str]:
        """Any number of known words."""
        given = self._given.getlist(name)
        for one in given:
            if one not in known:
                raise InvalidInput(name, repr(one[:100]), f"one of {', '.join(known)}")
        return given

    def path_with(self, **changed: str) -> str:
        """The same path with some parameters changed."""
        kept = [(name, value) for name, value in self._given.multi_items() if name not in changed]
        return f"{self._request.url.path}?{urlencode([*kept, *changed.items()])}"


def query_parameters(**schemas: dict[str, Any]) -> dict[str, Any]:
    """Part of a route's description."""
    return {"parameters": [{"name": name, "in": "query", "schema": schema} for name, schema in schemas.items()]}
