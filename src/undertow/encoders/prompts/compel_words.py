r"""The lexical level of compel's prompts: words, quotes, numbers, options. See `compel` for what they mean.

Every reader takes a position and returns what it read and the position behind it, or None when it does not fit.
Sources: compel's documentation (doc/syntax.md) and the grammar in its prompt_parser.py.
"""

import re
from dataclasses import dataclass

from undertow.encoders.prompts.source import Source
from undertow.encoders.prompts.tree import Text

SYNTAX = '()",.+-='

# A word holds escaped syntax, and + or - where something follows that is neither space nor syntax: `hot-dog` is one
# word, `hot-` is emphasis.
_WORD = re.compile(r"""(?:\\[()",.+\-=]|[+-](?![\s()",.+\-=]|\Z)|[^\s()",.+\-=])+""")
_FREE_WORD = re.compile(r"\S+")
_QUOTED = re.compile(r'"((?:\\"|[^"\n\r])*)"')
_NUMBER = re.compile(r"[+-]?(?:\d+\.\d*|\.\d+)|-?\d+", re.ASCII)
_SIGNS = re.compile(r"\++|-+")
_KEYWORD = re.compile(r"[\w-]+", re.ASCII)
_SPACE = re.compile(r"\s*")
_ESCAPED = re.compile(r'\\([()"])')

PLUS, MINUS = 1.1, 0.9
MOST_SIGNS = 100


@dataclass(frozen=True, kw_only=True)
class Option:
    """An argument of an operator: `0.7`, `no_normalize` or `t_start=0.1`. start, end: where it stands."""

    name: str | None
    value: float | str
    start: int
    end: int


@dataclass(frozen=True)
class Words:
    """The readers of one prompt, or of the part before `end`: what is quoted is a prompt of its own."""

    source: Source
    end: int

    def skip(self, position: int) -> int:
        """Behind white space."""
        found = _SPACE.match(self.source.text, position, self.end)
        return position if found is None else found.end()

    def literal(self, text: str, position: int) -> int | None:
        """Behind white space and `text`."""
        position = self.skip(position)
        return position + len(text) if self.source.text.startswith(text, position, self.end) else None

    def word(self, position: int) -> tuple[Text, int] | None:
        """A word without syntax."""
        return self._text(_WORD, self.skip(position))

    def free_word(self, position: int) -> tuple[Text, int] | None:
        """Everything up to the next white space."""
        return self._text(_FREE_WORD, position)

    def _text(self, pattern: "re.Pattern[str]", position: int) -> tuple[Text, int] | None:
        found = pattern.match(self.source.text, position, self.end)
        # The space belongs to the leaf, so that neighbors of equal weight can be joined.
        return None if found is None else (Text(_ESCAPED.sub(r"\1", found[0]) + " "), found.end())

    def quoted(self, position: int) -> tuple[tuple[int, int], int] | None:
        """The span between double quotes."""
        found = _QUOTED.match(self.source.text, self.skip(position), self.end)
        return None if found is None else (found.span(1), found.end())

    def number(self, position: int) -> tuple[float, int] | None:
        """A number. Errors: `PromptError` for one that is too large."""
        found = _NUMBER.match(self.source.text, position, self.end)
        return None if found is None else (self.source.number(*found.span()), found.end())

    def signs(self, position: int) -> tuple[float, int] | None:
        """The weight of `++` or `--`. Errors: `PromptError` for more of them than a number can hold."""
        found = _SIGNS.match(self.source.text, position, self.end)
        if found is None:
            return None
        if len(found[0]) > MOST_SIGNS:
            raise self.source.refusal(
                *found.span(), f"at most {MOST_SIGNS} signs", "1.1 to this power is 13,781 already"
            )
        return (PLUS if found[0][0] == "+" else MINUS) ** len(found[0]), found.end()

    def keyword(self, position: int) -> tuple[str, int] | None:
        """Letters, digits, `_` and `-`."""
        found = _KEYWORD.match(self.source.text, self.skip(position), self.end)
        return None if found is None else (found[0], found.end())

    def options(self, position: int) -> tuple[list[Option], int]:
        """Options between commas, maybe none."""
        options: list[Option] = []
        after = position
        while (found := self._option(position)) is not None:
            options.append(found[0])
            after = found[1]
            comma = self.literal(",", after)
            if comma is None:
                break
            position = comma
        return options, after

    def _option(self, position: int) -> tuple[Option, int] | None:
        start = self.skip(position)
        keyword = self.keyword(start)
        equals = None if keyword is None else self.literal("=", keyword[1])
        if keyword is not None and equals is not None:
            value = self.number(self.skip(equals)) or self.keyword(equals)
            if value is not None:
                return Option(name=keyword[0], value=value[0], start=start, end=value[1]), value[1]
        plain = self.number(start) or keyword
        return None if plain is None else (Option(name=None, value=plain[0], start=start, end=plain[1]), plain[1])
