r"""compel's prompts, which InvokeAI uses too.

    word+ word++      1.1, 1.21           word- word--     0.9, 0.81        (some words)+  "some words"-
    (some words)1.3   a weight            word.attend(0.5) the same         \( \) \"       the character itself
    ("a", "b").blend(0.7, 0.3)            embeddings mixed; no_normalize keeps the weights' sum
    ("a", "b").and(1, 0.5)                embeddings side by side; a weight is taken from the empty prompt
    cat.swap(dog, t_start=0.2)            dog for cat during a part of the steps
    withLora(name, 0.8)                   a tag, taken out of the text

Parentheses without an operator only group. What does not read as syntax is text: `a (b` stays `a (b`. Sources: compel's
documentation (doc/syntax.md) and the grammar in its prompt_parser.py. What the tool drops or fails on, text behind
`.and()` and wrong arguments, is refused with its place.
"""

import re

from undertow.encoders.prompts.compel_words import Option, Words
from undertow.encoders.prompts.source import Source
from undertow.encoders.prompts.tree import (
    MAX_DEPTH,
    Blend,
    Joined,
    Node,
    ParsedPrompt,
    Swap,
    Tag,
    Text,
    Weighted,
    find_all,
    sequence,
)

_SWAP_NOTE = ".swap() changes the words only; attention maps of the original are not kept"

_COMMA = re.compile(r",(\S)")
_Read = tuple[list[Node], int]


def parse(text: str) -> ParsedPrompt:
    """The tree of a prompt. Errors: `PromptError`."""
    typed = Source.typed(text)
    source = typed.spaced(match.start(1) for match in _COMMA.finditer(text))
    reader = _Reader(Words(source, len(source.text)))
    tree, around = reader.combined() or (sequence(reader.prompt(0)), [])
    tags = tuple(tag for node in (tree, *around) for tag in find_all(node, Tag))
    notes = (_SWAP_NOTE,) if find_all(tree, Swap) else ()
    return ParsedPrompt(tree=tree, dialect="compel", tags=tags, notes=notes)


class _Reader:
    """Readers return nodes and the position behind them, or None; what holds other syntax is read once at each place
    and remembered, since several rules begin with it."""

    def __init__(self, words: Words, depth: int = 0):
        self.words = words
        self.depth = depth
        self.groups: dict[int, _Read | None] = {}
        self.quotes: dict[int, _Read | None] = {}
        self.swaps: dict[int, _Read | None] = {}

    # Whole prompts

    def prompt(self, position: int) -> list[Node]:
        """Everything up to the end; what is not syntax is text."""
        nodes: list[Node] = []
        while (position := self.words.skip(position)) < self.words.end:
            found = (
                self.swap(position)
                or self.lora(position)
                or self.attention(position)
                or self.quoted(position)
                or self.group(position)
                or _one(self.words.free_word(position))
            )
            assert found is not None, "anything but white space is a free word"
            nodes += found[0]
            position = found[1]
        return nodes

    def combined(self) -> tuple[Node, list[Node]] | None:
        """`(...).blend(...)` or `(...).and(...)`, if that is what the prompt is, and the tags around it."""
        before, position = self._loras(0)
        found = self._operands(position)
        if found is None:
            return None
        parts, after = found
        # Tags in front of .and() make the tool read everything as text.
        for operator in (".blend",) if before else (".blend", ".and", ".add"):
            opening = self.words.literal(operator, after)
            opening = None if opening is None else self.words.literal("(", opening)
            if opening is None:
                continue
            options, behind = self.words.options(opening)
            closing = self.words.literal(")", behind)
            if closing is None:
                return None
            build = self._blend if operator == ".blend" else self._and
            return build(parts, options, opening), before + self._behind(operator, closing)
        return None

    def _loras(self, position: int) -> _Read:
        nodes: list[Node] = []
        while (found := self.lora(position)) is not None:
            nodes += found[0]
            position = found[1]
        return nodes, position

    def _behind(self, operator: str, position: int) -> list[Node]:
        tags, position = self._loras(position)
        position = self.words.skip(position)
        if position < self.words.end:
            raise self.words.source.refusal(
                position, self.words.end, f"nothing behind {operator}(...)", "put it into one of the quoted prompts"
            )
        return tags

    def _operands(self, position: int) -> tuple[list[Node], int] | None:
        place = self.words.literal("(", position)
        parts: list[Node] = []
        while place is not None:
            found = self.target(place) or self._quoted_prompt(place)
            if found is None:
                return None
            self.words.source.another(len(parts), place)
            parts.append(sequence(found[0]))
            closing = self.words.literal(")", found[1])
            if closing is not None:
                return parts, closing
            place = self.words.literal(",", found[1])
        return None

    def _quoted_prompt(self, position: int) -> _Read | None:
        found = self.words.quoted(position)
        return None if found is None else (self._inside(found[0]).prompt(found[0][0]), found[1])

    def _blend(self, parts: list[Node], options: list[Option], position: int) -> Node:
        normalize = not (options and options[-1].value == "no_normalize")
        weights = self._weights(parts, options if normalize else options[:-1], position)
        if any(find_all(part, Swap) for part in parts):
            raise self.words.source.refusal(0, position, "no .swap() inside of .blend()")
        return Blend(parts=tuple(parts), weights=weights, normalize=normalize)

    def _and(self, parts: list[Node], options: list[Option], position: int) -> Node:
        return Joined(tuple(parts), self._weights(parts, options, position))

    def _weights(self, parts: list[Node], options: list[Option], position: int) -> tuple[float, ...]:
        weights: list[float] = []
        for option in options:
            if option.name is not None or isinstance(option.value, str):
                raise self.words.source.refusal(option.start, option.end, "a weight such as 0.7")
            weights.append(option.value)
        if weights and len(weights) != len(parts):
            end = max(option.end for option in options)
            raise self.words.source.refusal(position, end, f"{len(parts)} weights, one for each prompt, or none")
        return tuple(weights) if weights else (1.0,) * len(parts)

    # Parts of a prompt

    def target(self, position: int) -> _Read | None:
        """What an operator can follow: quoted text, a group or a word."""
        return self.quoted(position) or self.group(position) or _one(self.words.word(position))

    def quoted(self, position: int) -> _Read | None:
        """Quoted text that reads as words and syntax throughout."""
        if position not in self.quotes:
            found = self.words.quoted(position)
            inner = None if found is None else self._inside(found[0]).fragment(found[0][0], punctuation=True)
            whole = found is not None and inner is not None and self.words.skip(inner[1]) >= found[0][1]
            self.quotes[position] = (inner[0], found[1]) if found and inner and whole else None
        return self.quotes[position]

    def _inside(self, span: tuple[int, int]) -> "_Reader":
        depth = self.words.source.deeper(self.depth, MAX_DEPTH, span[0])
        return _Reader(Words(self.words.source, span[1]), depth)

    def group(self, position: int) -> _Read | None:
        """Parentheses around words and syntax."""
        position = self.words.skip(position)
        if position not in self.groups:
            opening = self.words.literal("(", position)
            self.groups[position] = None
            if opening is not None:
                self.depth = self.words.source.deeper(self.depth, MAX_DEPTH, position)
                nodes, after = self.fragment(opening, punctuation=True)
                self.depth -= 1
                closing = self.words.literal(")", after)
                self.groups[position] = None if closing is None else (nodes, closing)
        return self.groups[position]

    def fragment(self, position: int, *, punctuation: bool) -> _Read:
        """As many words and pieces of syntax as follow; commas and periods if `punctuation`."""
        nodes: list[Node] = []
        while True:
            found = (
                self.lora(position)
                or self.attention(position)
                or self.swap(position)
                or self.group(position)
                or self.quoted(position)
                or _one(self.words.word(position))
            )
            if found is None and punctuation:
                found = self._mark(",", position) or self._mark(".", position)
            if found is None:
                return nodes, position
            nodes += found[0]
            position = found[1]

    def _mark(self, mark: str, position: int) -> _Read | None:
        after = self.words.literal(mark, position)
        return None if after is None else ([Text(mark + " ")], after)

    def attention(self, position: int) -> _Read | None:
        """`word+`, `(words)1.3`, `words.attend(0.5)`."""
        for found, numbered in (
            (self.quoted(position) or self.group(position), True),
            (_one(self.words.word(position)), False),
        ):
            if found is None:
                continue
            nodes, after = found
            weight = self._attend(after) or self.words.signs(after) or (self.words.number(after) if numbered else None)
            if weight is not None:
                return [Weighted(sequence(nodes), weight[0])], weight[1]
        return None

    def _attend(self, position: int) -> tuple[float, int] | None:
        opening = self.words.literal(".attend", position)
        opening = None if opening is None else self.words.literal("(", opening)
        if opening is None:
            return None
        start = self.words.skip(opening)
        weight = self.words.signs(start) or self.words.number(start)
        closing = None if weight is None else self.words.literal(")", weight[1])
        return None if weight is None or closing is None else (weight[0], closing)

    def swap(self, position: int) -> _Read | None:
        """`original.swap(edited, t_start=0.2)`."""
        position = self.words.skip(position)
        if position not in self.swaps:
            self.swaps[position] = self._read_swap(position)
        return self.swaps[position]

    def _read_swap(self, position: int) -> _Read | None:
        found = self.target(position)
        opening = None if found is None else self.words.literal(".swap", found[1])
        opening = None if opening is None else self.words.literal("(", opening)
        if found is None or opening is None:
            return None
        self.depth = self.words.source.deeper(self.depth, MAX_DEPTH, opening - 1)
        edited, after = self.fragment(opening, punctuation=False)
        self.depth -= 1
        comma = self.words.literal(",", after)
        options, after = ([], after) if comma is None else self.words.options(comma)
        closing = self.words.literal(")", after)
        if closing is None:
            return None
        window = self._window(options)
        return [Swap(original=sequence(found[0]), edited=sequence(edited), **window)], closing

    def _window(self, options: list[Option]) -> dict[str, float]:
        # s_start, s_end and shape_freedom say how long self-attention keeps the original's shapes: not for text alone.
        names = {"t_start": "start", "t_end": "end", "s_start": None, "s_end": None, "shape_freedom": None}
        window: dict[str, float] = {}
        for option in options:
            if option.name not in names or isinstance(option.value, str):
                raise self.words.source.refusal(option.start, option.end, f"one of {', '.join(names)} = a number")
            name = names[option.name]
            if name is not None:
                window[name] = option.value
        return window

    def lora(self, position: int) -> _Read | None:
        """`withLora(name, 0.8)`: a tag, and no text."""
        start = self.words.skip(position)
        for trigger in ("useLora", "withLora"):
            opening = self.words.literal(trigger, start)
            opening = None if opening is None else self.words.literal("(", opening)
            name = None if opening is None else self.words.keyword(opening)
            if name is None:
                continue
            comma = self.words.literal(",", name[1])
            weight = None if comma is None else self.words.number(self.words.skip(comma))
            closing = self.words.literal(")", name[1] if weight is None else weight[1])
            if closing is not None:
                return [Tag(kind="lora", arguments=(name[0], "1.0" if weight is None else str(weight[0])))], closing
        return None


def _one(found: tuple[Text, int] | None) -> _Read | None:
    return None if found is None else ([found[0]], found[1])
