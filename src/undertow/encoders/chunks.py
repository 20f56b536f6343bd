"""Fragments of text to chunks of token ids: 75 tokens between a begin and an end mark, then padding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from undertow.encoders.clip import TextEncoder
from undertow.encoders.inversion import Inversions
from undertow.encoders.prompts.tree import Break, Embedding, Fragment, Text
from undertow.limits import TOKENS

MARK = -1
"""The fragment of marks and padding: none."""


class Token(NamedTuple):
    """One place in a chunk. fragment: index of the text it came from. vector: name and row of a textual inversion."""

    id: int
    weight: float = 1.0
    fragment: int = MARK
    vector: tuple[str, int] | None = None


@dataclass(frozen=True)
class Run:
    """Tokens that came from one text, or from one embedding."""

    tokens: tuple[Token, ...]
    embedding: bool = False


@dataclass(frozen=True, kw_only=True)
class Division:
    """How a long prompt is divided. See `prompts.catalogue.Dialect` for the two numbers.

    truncate: only the first chunk is kept. divide_embeddings: as texts are; otherwise they never are. comma: id of the
    comma, None where the vocabulary has none.
    """

    truncate: bool = False
    comma_backtrack: int = 0
    keep_together: int = 0
    divide_embeddings: bool = False
    comma: int | None = None


@dataclass(frozen=True)
class Chunk:
    """Places from the begin mark to the last padding, as many as the encoder has positions."""

    tokens: tuple[Token, ...]

    @property
    def weighted(self) -> bool:
        """Whether any place has a weight other than 1."""
        return any(token.weight != 1.0 for token in self.tokens)


def tokenize(
    parts: Sequence[Fragment | Break], encoder: TextEncoder, inversions: Inversions, *, names: bool = True
) -> tuple[list[Run | Break], list[str]]:
    """The tokens of each fragment, and notes on embeddings that nobody knows, which ComfyUI leaves out as well. names:
    whether a word that is an embedding's name stands for it, without any syntax."""
    runs: list[Run | Break] = []
    notes: list[str] = []
    for index, part in enumerate(parts):
        if isinstance(part, Break):
            runs.append(part)
            continue
        leaves = inversions.split(part.leaf.text) if names and isinstance(part.leaf, Text) else [part.leaf]
        for leaf in leaves:
            match leaf:
                case Text(text):
                    ids = encoder.tokenizer.encode(text)
                    runs.append(Run(tuple(Token(id, part.weight, index) for id in ids)))
                case Embedding(asked):
                    name = inversions.find(asked)
                    if name is None:
                        notes.append(f"embedding {asked!r} is not known and was left out")
                        continue
                    rows = range(len(inversions.vectors(name, encoder.kind)))
                    # The id is never embedded; it must only not be taken for an end mark.
                    runs.append(Run(tuple(Token(0, part.weight, index, (name, row)) for row in rows), embedding=True))
    return runs, notes


def divide(runs: Sequence[Run | Break], encoder: TextEncoder, division: Division) -> tuple[list[Chunk], list[Token]]:
    """Chunks of the encoder's size, at least one, and the tokens that were cut off. Errors: `InvalidInput` for more
    than `limits.TOKENS` with the padding, which a short prompt of many BREAKs can ask for."""
    filler = _Filler(encoder.config.positions - 2, division)
    for run in runs:
        if isinstance(run, Break):
            filler.open()
        else:
            filler.take(run)
    bodies = filler.bodies
    if len(bodies) > 1 and not bodies[-1]:
        bodies.pop()
    positions, chunks = encoder.config.positions, 1 if division.truncate else len(bodies)
    TOKENS.require("prompt", chunks * positions, f"{chunks:,} chunks of {positions} tokens", instead="shorten it")
    kept, cut = (bodies[:1], bodies[1:]) if division.truncate else (bodies, [])
    return [close(body, encoder) for body in kept], [token for body in cut for token in body]


def close(body: Sequence[Token], encoder: TextEncoder) -> Chunk:
    """The tokens between their marks, padded to the encoder's size."""
    marked = (Token(encoder.tokenizer.bos), *body, Token(encoder.tokenizer.eos))
    return Chunk(marked + (Token(encoder.pad),) * (encoder.config.positions - len(marked)))


class _Filler:
    """Fills one body after another with tokens, as A1111 does with commas and ComfyUI with short texts."""

    def __init__(self, capacity: int, division: Division):
        self.capacity = capacity
        self.division = division
        self.bodies: list[list[Token]] = [[]]
        self.comma: int | None = None

    def open(self) -> None:
        """The next body; also where nothing was written yet, as BREAK BREAK asks for."""
        self.bodies.append([])
        self.comma = None

    def take(self, run: Run) -> None:
        whole = run.embedding and not self.division.divide_embeddings
        together = whole or len(run.tokens) < self.division.keep_together
        if together and len(self.bodies[-1]) + len(run.tokens) > self.capacity:
            self.open()
        for token in run.tokens:
            self._put(token)

    def _put(self, token: Token) -> None:
        comma = token.id == self.division.comma and token.vector is None
        full = len(self.bodies[-1]) == self.capacity
        if comma and not full:
            self.comma = len(self.bodies[-1])
        if full:
            moved = [] if comma else self._behind_comma()
            self.open()
            self.bodies[-1] += moved
        self.bodies[-1].append(token)

    def _behind_comma(self) -> list[Token]:
        """What the full body holds behind its last comma, taken out of it, if that is near enough to the end."""
        body = self.bodies[-1]
        if self.comma is None or len(body) - self.comma > self.division.comma_backtrack:
            return []
        moved = body[self.comma + 1 :]
        del body[self.comma + 1 :]
        return moved


def describe(tokens: Sequence[Token], encoder: TextEncoder) -> str:
    """What tokens say, for a report."""
    words: list[str] = []
    ids: list[int] = []
    for token in tokens:
        if token.vector is None:
            ids.append(token.id)
            continue
        if token.vector[1] == 0:
            words += [encoder.tokenizer.decode(ids), token.vector[0]]
            ids = []
    return " ".join(word for word in (*words, encoder.tokenizer.decode(ids)) if word)
