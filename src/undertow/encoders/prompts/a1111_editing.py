r"""Which brackets of a web UI prompt edit or alternate: `[from:to:when]`, `[to:when]`, `[from::when]`, `[a|b]`.

The grammar, with the tool's own words for its parts:

    prompt     = (emphasized | scheduled | alternate | plain)*      plain: anything but \ ( ) [ ] : |, or an escape
    emphasized = "(" prompt [":" prompt] ")" | "[" prompt "]"
    scheduled  = "[" [prompt ":"] prompt ":" number "]"
    alternate  = "[" prompt ("|" prompt)+ "]"

At the top level brackets and colons may also stand alone. What the grammar does not admit, a `|` outside of brackets or
a backslash at the very end, switches editing off for the whole prompt. Source: the grammar in A1111's prompt_parser.py.
"""

import re
from dataclasses import dataclass

from undertow.encoders.prompts.source import Source
from undertow.encoders.prompts.tree import MAX_DEPTH, When

_NUMBER = re.compile(r"\s*([+-]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?)\s*", re.ASCII)
_CLOSING = {"(": ")", "[": "]"}


@dataclass(frozen=True, kw_only=True)
class Bracket:
    """A bracket that edits (`when` is set; two options) or alternates. Spans and end are indices in the prompt."""

    end: int
    options: tuple[tuple[int, int], ...]
    when: When | None = None


def find_editing(source: Source) -> dict[int, Bracket]:
    """The brackets that edit or alternate, by the index at which they open. Errors: `PromptError` for deep nesting."""
    return _Reader(source).read()


class _Reader:
    """Reads each bracket once: a bracket that does not fit the grammar is tried again as text, with all inside it."""

    def __init__(self, source: Source):
        self.source = source
        self.text = source.text
        self.editing: dict[int, Bracket] = {}
        self.ends: dict[int, int | None] = {}

    def read(self) -> dict[int, Bracket]:
        position = 0
        while position < len(self.text):
            match self.text[position]:
                case "|":
                    return {}
                case "\\":
                    if not self._escapes(position):
                        return {}
                    position += 2
                case "(" | "[":
                    position = self._bracket(position, 0) or position + 1
                case _:
                    position += 1
        return self.editing

    def _escapes(self, position: int) -> bool:
        return position + 1 < len(self.text) and self.text[position + 1] != "\n"

    def _bracket(self, position: int, depth: int) -> int | None:
        """The index behind the bracket that opens here, or None when it does not fit the grammar."""
        if position not in self.ends:
            depth = self.source.deeper(depth, MAX_DEPTH, position)
            self.ends[position] = self._read_bracket(position, depth)
        return self.ends[position]

    def _read_bracket(self, opening: int, depth: int) -> int | None:
        spans: list[tuple[int, int]] = []
        separators = ""
        start = opening + 1
        while True:
            stop = self._prompt(start, depth)
            if stop is None or stop == len(self.text):
                return None
            spans.append((start, stop))
            start = stop + 1
            if self.text[stop] not in ":|":
                break
            separators += self.text[stop]
        if self.text[stop] != _CLOSING[self.text[opening]]:
            return None
        if self.text[opening] == "(":
            return start if separators in ("", ":") else None
        return start if separators == "" or self._edits(opening, spans, separators, end=start) else None

    def _edits(self, opening: int, spans: list[tuple[int, int]], separators: str, *, end: int) -> bool:
        if set(separators) == {"|"}:
            self.editing[opening] = Bracket(end=end, options=tuple(spans))
            return True
        number = _NUMBER.fullmatch(self.text, *spans[-1])
        if separators not in (":", "::") or number is None:
            return False
        when = When(value=self.source.number(*number.span(1)), fraction="." in number[1])
        before = spans[0] if separators == "::" else (spans[0][0], spans[0][0])
        self.editing[opening] = Bracket(end=end, options=(before, spans[-2]), when=when)
        return True

    def _prompt(self, position: int, depth: int) -> int | None:
        """The index of the character at which a `prompt` ends, or None when a bracket inside does not fit."""
        while position < len(self.text) and self.text[position] not in ":|)]":
            match self.text[position]:
                case "\\":
                    if not self._escapes(position):
                        return None
                    position += 2
                case "(" | "[":
                    end = self._bracket(position, depth)
                    if end is None:
                        return None
                    position = end
                case _:
                    position += 1
        return min(position, len(self.text))
