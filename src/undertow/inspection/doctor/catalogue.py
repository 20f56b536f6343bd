"""Every rule of the doctor, by name, in the order in which they are asked."""

from collections.abc import Mapping, Sequence

from undertow.errors import InvalidInput
from undertow.inspection.doctor import adapters, memory, nan, picture, provenance, request, slow
from undertow.inspection.doctor.finding import Rule
from undertow.lookup import did_you_mean

_ROOMS = (nan, picture, request, adapters, slow, memory, provenance)

RULES: Mapping[str, Rule] = {rule.name: rule for room in _ROOMS for rule in room.RULES}


def rules_named(names: Sequence[str]) -> Sequence[Rule]:
    """The rules of these names, or families of rules; all where none is named. Errors: `InvalidInput`."""
    if not names:
        return tuple(RULES.values())
    families = {rule.family for rule in RULES.values()}
    for name in names:
        if name not in RULES and name not in families:
            known = f"{did_you_mean(name, [*families, *RULES])}families: {', '.join(sorted(families))}"
            raise InvalidInput("only", repr(name), "a rule or a family of rules", known)
    return tuple(rule for rule in RULES.values() if rule.name in names or rule.family in names)
