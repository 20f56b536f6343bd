"""What each token of a context says: the way back from a network's attention to the words of a prompt."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Literal

from undertow.encoders.chunks import MARK, Chunk, Token
from undertow.encoders.tokenizer import Tokenizer

PlaceKind = Literal["start", "text", "end", "padding"]
"""A chunk is a start mark, the tokens of a text, an end mark, and padding. Marks and padding are attended to as words
are: most attention that concerns no word in particular goes to the start mark."""


@dataclass(frozen=True)
class Place:
    """A token of a text, and where it stands in the context."""

    position: int
    token: Token


@dataclass(frozen=True)
class Word:
    """A word of a text, or the name of an embedding. positions: of its pieces in the context."""

    text: str
    positions: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """How an encoder read a prompt. kinds: of every place of the context. texts: their tokens; several where a prompt
    is a blend, whose texts share places, or where texts stand side by side. tokenizer: what its ids mean."""

    kinds: tuple[PlaceKind, ...]
    texts: tuple[tuple[Place, ...], ...]
    tokenizer: Tokenizer

    @classmethod
    def of_chunks(cls, chunks: Sequence[Chunk], tokenizer: Tokenizer) -> "Reading":
        """Of one text."""
        tokens = [token for chunk in chunks for token in chunk.tokens]
        text = tuple(Place(position, token) for position, token in enumerate(tokens) if token.fragment != MARK)
        return cls(kinds=tuple(kind for chunk in chunks for kind in _kinds(chunk)), texts=(text,), tokenizer=tokenizer)

    def moved(self, by: int) -> "Reading":
        """The same texts behind `by` other places."""
        texts = tuple(tuple(replace(one, position=one.position + by) for one in text) for text in self.texts)
        return replace(self, texts=texts)

    @cached_property
    def words(self) -> tuple[Word, ...]:
        """All words in their order. Pieces of a word that byte-pair encoding divided are one."""
        return tuple(word for text in self.texts for word in self._words(text))

    def positions_of(self, pieces: Sequence[Token]) -> list[tuple[int, ...]]:
        """Where these tokens stand one behind the other, as whole words: the places of each time that they do."""
        wanted = [_key(token) for token in pieces]
        found: list[tuple[int, ...]] = []
        for text in self.texts:
            keys = [_key(place.token) for place in text]
            for first in range(len(keys) - len(wanted) + 1):
                if keys[first : first + len(wanted)] == wanted and self._begins_word(text, first):
                    found.append(tuple(place.position for place in text[first : first + len(wanted)]))
        return found

    def positions_of_kind(self, kind: PlaceKind) -> tuple[int, ...]:
        """All places of a kind."""
        return tuple(position for position, other in enumerate(self.kinds) if other == kind)

    def _words(self, text: Sequence[Place]) -> list[Word]:
        starts = [index for index in range(len(text)) if self._begins_word(text, index)]
        words = [text[start:end] for start, end in pairwise([*starts, len(text)])]
        return [Word(self._said(word), tuple(place.position for place in word)) for word in words]

    def _said(self, places: Sequence[Place]) -> str:
        vector = places[0].token.vector
        return self.tokenizer.decode([place.token.id for place in places]) if vector is None else vector[0]

    def _begins_word(self, text: Sequence[Place], index: int) -> bool:
        if index == 0:
            return True
        before, token = text[index - 1].token, text[index].token
        if token.vector is not None:
            return token.vector[1] == 0
        if before.vector is not None or before.fragment != token.fragment:
            return True
        decode = self.tokenizer.decode  # which puts a space where a word ended
        return decode([before.id, token.id]) == f"{decode([before.id])} {decode([token.id])}"


def joined(readings: Sequence[Reading]) -> Reading:
    """Of contexts one behind the other."""
    texts: list[tuple[Place, ...]] = []
    kinds: list[PlaceKind] = []
    for one in readings:
        texts += one.moved(len(kinds)).texts
        kinds += one.kinds
    return replace(readings[0], kinds=tuple(kinds), texts=tuple(texts))


def blended(readings: Sequence[Reading]) -> Reading:
    """Of contexts that are mixed, and equally long."""
    kinds = tuple("text" if "text" in each else each[0] for each in zip(*(one.kinds for one in readings), strict=True))
    return replace(readings[0], kinds=kinds, texts=tuple(text for one in readings for text in one.texts))


def _kinds(chunk: Chunk) -> list[PlaceKind]:
    text = [index for index, token in enumerate(chunk.tokens) if token.fragment != MARK]
    kinds: list[PlaceKind] = ["start", *["text"] * len(text), "end"]
    return kinds + ["padding"] * (len(chunk.tokens) - len(kinds))


def _key(token: Token) -> tuple[int, tuple[str, int] | None]:
    return token.id, token.vector
