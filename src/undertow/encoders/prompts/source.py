"""A prompt that remembers where its characters stood when it was typed, for errors that name the place."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from undertow.errors import PromptError
from undertow.limits import LARGEST_SCALE

MAX_PARTS = 100
"""Most prompts that one may be made of. Every one is encoded by itself, and with AND also guided by itself."""

SHOWN = 60
"""Characters of a prompt that an error quotes at most."""


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
        kept: list[tuple[int, int]] = []
        position = 0
        for start, end in spans:
            kept.append((position, start))
            position = end
        kept.append((position, len(self.origin)))
        text = "".join(self.text[start:end] for start, end in kept)
        return Source(text, tuple(place for start, end in kept for place in self.origin[start:end]))

    def spaced(self, positions: Iterable[int]) -> "Source":
        """With a space before each of `positions`."""
        texts: list[str] = []
        origin: list[int] = []
        position = 0
        for place in positions:
            texts += self.text[position:place], " "
            origin += (*self.origin[position:place], self.origin[place])
            position = place
        return Source("".join((*texts, self.text[position:])), (*origin, *self.origin[position:]))

    def number(self, start: int, end: int) -> float:
        """The number written from `start` up to `end`. Errors: `PromptError` unless it is one, and finite, and no
        larger than what anything is drawn with."""
        try:
            value = float(self.text[start:end])
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self.refusal(start, end, "a finite number such as 1.2")
        if abs(value) > LARGEST_SCALE:
            expected = f"a number from -{LARGEST_SCALE:,} to {LARGEST_SCALE:,}, such as 1.2"
            raise self.refusal(start, end, expected)
        return value

    def refusal(self, start: int, end: int, expected: str, remedy: str = "") -> PromptError:
        """The error that names the characters from `start` up to `end`."""
        shown = self.text[start:end] if end - start <= SHOWN else f"{self.text[start : start + SHOWN]}..."
        return PromptError(self.origin[start], repr(shown), expected, remedy)

    def deeper(self, depth: int, limit: int, position: int) -> int:
        """`depth` + 1. Errors: `PromptError` behind the limit."""
        if depth >= limit:
            raise self.refusal(position, position + 1, f"at most {limit} brackets inside one another")
        return depth + 1

    def another(self, count: int, position: int) -> None:
        """Where one more prompt begins within a prompt. Errors: `PromptError` when `count` are more than may be."""
        if count >= MAX_PARTS:
            raise self.refusal(position, len(self.text), f"at most {MAX_PARTS} prompts in one", "each is encoded alone")
