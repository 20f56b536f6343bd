"""Fields that clients of other servers send and that can only have one meaning here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from undertow.doors import shown
from undertow.errors import InvalidInput


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """values: those that ask for what is done anyway; nothing (JSON's null) always does. remedy: what helps a client
    that asks for something else."""

    values: tuple[Any, ...] = ()
    remedy: str = ""


def without_fixed(given: Mapping[str, Any], fixed: Mapping[str, Fixed]) -> dict[str, Any]:
    """The other fields. Errors: `InvalidInput` for a field whose value asks for what undertow does not do."""
    for name in given.keys() & fixed.keys():
        require_fixed(name, given[name], fixed[name])
    return {name: value for name, value in given.items() if name not in fixed}


def require_fixed(name: str, value: Any, fixed: Fixed) -> None:
    """Errors: `InvalidInput`."""
    if value is not None and value not in fixed.values:
        listed = " or ".join(map(shown, fixed.values))
        raise InvalidInput(name, shown(value), listed if fixed.values else "nothing", fixed.remedy)
