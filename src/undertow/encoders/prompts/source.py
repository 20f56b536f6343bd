"""A prompt that remembers where its characters stood when it was typed, for errors that name the place."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from undertow.errors import PromptError


@dataclass(frozen=True)
class Source:
    """origin: for each character and for the end, its index in what was typed."""

    text: str
    origin: tuple[int, ...]

    @classmethod
    def typed(cls, text: str) -> "Source":
        """A prompt as it was typed."""
        return cls(text, tuple(range(len(text) + 1)))

    def part(self, start: int, end: int) -> "Source":
        """The characters from `start` up to `end`."""
        return Source(self.text[start:end], self.origin[start : end + 1])

    def without(self, spans: Iterable[tuple[int, int]]) -> "Source":
        """The rest when `spans` are cut out."""
        text, origin, position = "", (), 0
        for start, end in spans:
            text += self.text[position:start]
            origin += self.origin[position:start]
            position = end
        return Source(text + self.text[position:], origin + self.origin[position:])

    def spaced(self, positions: Iterable[int]) -> "Source":
        """With a space before each of `positions`."""
        text, origin, position = "", (), 0
        for place in positions:
            text += self.text[position:place] + " "
            origin += (*self.origin[position:place], self.origin[place])
            position = place
        return Source(text + self.text[position:], origin + self.origin[position:])

    def number(self, start: int, end: int) -> float:
        """The number written from `start` up to `end`. Errors: `PromptError` unless it is one, and finite."""
        try:
            value = float(self.text[start:end])
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self.refusal(start, end, "a finite number such as 1.2")
        return value

    def refusal(self, start: int, end: int, expected: str, remedy: str = "") -> PromptError:
        """The error that names the characters from `start` up to `end`."""
        return PromptError(self.origin[start], repr(self.text[start:end]), expected, remedy)

    def deeper(self, depth: int, limit: int, position: int) -> int:
        """`depth` + 1. Errors: `PromptError` behind the limit."""
        if depth >= limit:
            raise self.refusal(position, position + 1, f"at most {limit} brackets inside one another")
        return depth + 1


WHITESPACE = re.compile(r"\s*")
