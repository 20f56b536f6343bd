r"""Values by patterns of layer names, which come from files: matched in time that grows with the name alone.

PEFT matches them with `re`, which an untrusted pattern such as "(a+)+b" keeps busy for years. What is read here is what
users of PEFT write, names and names with wildcards: characters, `\.`, `.`, `\d` and `[...]`, each of which `?`, `*` or
`+` may follow. All positions in a pattern that a name can have reached are followed at once, one bit each (G. Navarro
and M. Raffinot, "Flexible Pattern Matching in Strings", 2002, chapter 4), so that nothing is tried twice.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Value = TypeVar("Value")

MAX_LENGTH = 200
"""Characters of a pattern."""
MAX_REPEATED = 8
"""Items of a pattern with a quantifier."""
MAX_WILDCARDS = 32
"""Patterns with wildcards in one file; plain names are looked up, and may be many."""

_PLAIN = re.compile(r"(?:[\w-]|\\?\.)+")
_ITEM = re.compile(r"(?P<set>\[\^?(?:[\w.-])+\]|\\d|\\[.\-_\[\]]|[\w.-])(?P<quantifier>[?*+])?")


class UnreadablePattern(ValueError):
    """A pattern that is not of the kind that is read here."""


@dataclass(frozen=True)
class Wildcard:
    """A pattern with wildcards. accepts: the items that accept a character, as bits, by character; optional, repeated:
    the items that may be left out, or follow themselves."""

    items: tuple[re.Pattern[str], ...]
    optional: int
    repeated: int
    _accepting: dict[str, int] = field(default_factory=dict, compare=False)

    @classmethod
    def parse(cls, pattern: str) -> "Wildcard":
        """Errors: `UnreadablePattern`."""
        items: list[re.Pattern[str]] = []
        optional = repeated = position = 0
        while position < len(pattern):
            found = _ITEM.match(pattern, position)
            if found is None:
                raise UnreadablePattern(f"{pattern[position : position + 20]!r} in it")
            bit, quantifier = 1 << len(items), found["quantifier"]
            optional |= bit if quantifier in ("?", "*") else 0
            repeated |= bit if quantifier in ("*", "+") else 0
            items.append(_set(found["set"]))
            position = found.end()
        if (optional | repeated).bit_count() > MAX_REPEATED:
            raise UnreadablePattern(f"more than {MAX_REPEATED} wildcards")
        return cls(tuple(items), optional, repeated)

    def matches(self, name: str) -> bool:
        """Whether the name, or what follows any of its dots, is what the pattern describes."""
        start = self._with_left_out(1)
        states = start
        for character in name:
            if not states and character != ".":
                continue
            accepted = states & self._accepting_items(character)
            states = self._with_left_out(accepted << 1 | accepted & self.repeated)
            if character == ".":
                states |= start
        return bool(states >> len(self.items) & 1)

    def _accepting_items(self, character: str) -> int:
        known = self._accepting.get(character)
        if known is None:
            known = sum(1 << index for index, item in enumerate(self.items) if item.fullmatch(character))
            self._accepting[character] = known
        return known

    def _with_left_out(self, states: int) -> int:
        """The states, and those behind items that may be left out."""
        while True:
            more = states | (states & self.optional) << 1
            if more == states:
                return states
            states = more


class NamePatterns(Generic[Value]):
    """Values by pattern, the first that matches counting, as in PEFT (`get_pattern_key` in `utils/other.py`): a pattern
    is for names that end in it, from the start or from a dot on. Errors: `UnreadablePattern`."""

    def __init__(self, values: Mapping[str, Value]):
        self.values = values
        self._plain: dict[str, int] = {}
        self._wildcards: dict[int, Wildcard] = {}
        for index, pattern in enumerate(values):
            if len(pattern) > MAX_LENGTH:
                raise UnreadablePattern(f"more than {MAX_LENGTH} characters")
            # Anchors say what holds anyway; what PEFT matches begins behind the component's name, so that "^" may be
            # behind a dot here.
            inner = pattern.removeprefix("^").removesuffix("$")
            if _PLAIN.fullmatch(inner):
                self._plain.setdefault(inner.replace("\\.", "."), index)
            else:
                self._wildcards[index] = Wildcard.parse(inner)
        if len(self._wildcards) > MAX_WILDCARDS:
            raise UnreadablePattern(f"{len(self._wildcards)} patterns with wildcards, more than {MAX_WILDCARDS}")
        self._found: dict[str, Value | None] = {}

    @property
    def wildcards(self) -> int:
        """How many of them have wildcards: each costs time for each character of a name."""
        return len(self._wildcards)

    def find(self, name: str) -> Value | None:
        """The value for a name, if a pattern matches it."""
        if name not in self._found:
            self._found[name] = self._search(name)
        return self._found[name]

    def _search(self, name: str) -> Value | None:
        ends = (name.split(".", count)[-1] for count in range(name.count(".") + 1))
        matching = [self._plain[end] for end in ends if end in self._plain]
        matching += [index for index, pattern in self._wildcards.items() if pattern.matches(name)]
        return list(self.values.values())[min(matching)] if matching else None


def _set(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as err:
        raise UnreadablePattern(f"{text!r} in it ({err})") from err
