r"""The prompts of AUTOMATIC1111's web UI and of Forge.

    (word) 1.1   ((word)) 1.21   (word:1.3) 1.3   [word] 1/1.1   \( \) \[ \] \\ the character itself
    BREAK                    a new chunk
    [from:to:when] [to:when] [from::when]     editing: when is a step, or with a decimal point a fraction of the steps
    [a|b]                    alternation, one option a step
    a :0.7 AND b :1.2        composition, each prompt with its own guidance
    <lora:name:0.8>          a tag, taken out of the text

Of a negative prompt and of a region's the tool reads all of this but composition: AND and a number at the end are text.
AND is read first, then editing and alternation, then emphasis, which is why a bracket that does not pair is read as
emphasis up to the end of the prompt. Inside a bracket of editing all brackets must pair; otherwise, and wherever a `|`
stands outside of brackets, the tool edits nothing. Sources: the wiki's pages "Features" and "Composable Diffusion", and
the examples in prompt_parser.py. Two things differ: the tool forgets BREAK inside parentheses, here it breaks; and a
weight is a number, never text that is itself edited.
"""

import re

from undertow.encoders.prompts.a1111_editing import Bracket, find_editing
from undertow.encoders.prompts.source import Source
from undertow.encoders.prompts.tree import (
    MAX_DEPTH,
    Alternate,
    Break,
    Composed,
    Edit,
    Node,
    ParsedPrompt,
    Tag,
    Text,
    Weighted,
    sequence,
)

# Patterns that begin with white space, or look for an end that may not be there, take quadratic time.
_TAG = re.compile(r"<(\w+):([^>]+)>")
_AND = re.compile(r"\bAND\b")
_GUIDANCE = re.compile(r"\s*([-+]?(?:\d+\.?|\d*\.\d+))")
_BREAK = re.compile(r"\bBREAK\b")
_TOKEN = re.compile(r"\\[()\[\]\\]|\\|[(\[)\]]|:\s*(?P<weight>[+-]?[.\d]+)\s*\)|[^\\()\[\]:]+|:")
_ROUND, _SQUARE = 1.1, 1 / 1.1
_AND_IS_TEXT = (
    "AND is a word like others here: only the prompt itself is composed, not a negative one, a region's or a second one"
)


def parse(text: str, *, emphasis: bool = True, composition: bool = True) -> ParsedPrompt:
    """The tree of a prompt. Without `emphasis`, parentheses and BREAK are text; without `composition`, AND and the
    guidance weight at the end are. Editing stays.

    Errors: `PromptError` for weights that are not numbers, brackets nested too deep and too many prompts in one.
    """
    typed = Source.typed(text)
    tags = list(_TAG.finditer(text, 0, text.rfind(">") + 1))
    source = typed.without(tag.span() for tag in tags)
    parts = [_weighted(part) for part in _split(source)] if composition else [(source, 1.0)]
    trees = [_Reader(part, find_editing(part), emphasis=emphasis).read(0, len(part.text)) for part, _ in parts]
    weights = tuple(weight for _, weight in parts)
    return ParsedPrompt(
        tree=trees[0] if weights == (1.0,) else Composed(tuple(trees), weights),
        dialect="a1111",
        tags=tuple(Tag(kind=tag[1], arguments=tuple(tag[2].split(":"))) for tag in tags),
        notes=_notes(source.text, weights, composition=composition),
    )


def _notes(text: str, weights: tuple[float, ...], *, composition: bool) -> tuple[str, ...]:
    """What one may not expect of how composition was read."""
    if not composition:
        return (_AND_IS_TEXT,) if _AND.search(text) else ()
    weight, *others = weights
    if others or weight == 1.0:
        return ()
    return (f"the {weight:g} at the end of the prompt was read as the weight of its guidance, as A1111 reads it",)


def _split(source: Source) -> list[Source]:
    """The parts between ANDs."""
    parts: list[Source] = []
    start = 0
    for match in _AND.finditer(source.text):
        source.another(len(parts) + 1, match.start())
        parts.append(source.part(start, match.start()))
        start = match.end()
    return [*parts, source.part(start, len(source.text))]


def _weighted(source: Source) -> tuple[Source, float]:
    """The part without the weight that stands behind its last colon, and the weight."""
    end = len(source.text.rstrip())
    colon = source.text.rfind(":", 0, end)
    match = None if colon < 0 else _GUIDANCE.fullmatch(source.text, colon + 1, end)
    if match is None:
        return source, 1.0
    return source.part(0, len(source.text[:colon].rstrip())), source.number(*match.span(1))


class _Reader:
    """Reads emphasis. editing: the brackets that edit or alternate, by position."""

    def __init__(self, source: Source, editing: dict[int, Bracket], *, emphasis: bool):
        self.source = source
        self.editing = editing
        self.emphasis = emphasis

    def read(self, start: int, end: int) -> Node:
        """The text from `start` up to `end`."""
        pieces = _Pieces()
        position = start
        while position < end:
            if position in self.editing:
                pieces.add(self._edited(self.editing[position]))
                position = self.editing[position].end
                continue
            token = _TOKEN.match(self.source.text, position, end)
            assert token is not None, "every character begins a token"
            position = token.end()
            if not self.emphasis:
                pieces.add(Text(token[0]))
                continue
            self._take(token, pieces)
        return pieces.closed()

    def _take(self, token: "re.Match[str]", pieces: "_Pieces") -> None:
        match token[0]:
            case "(":
                self._open(pieces.rounds, token.start(), pieces)
            case "[":
                self._open(pieces.squares, token.start(), pieces)
            case _ if token["weight"] is not None and pieces.rounds:
                pieces.multiply(pieces.rounds.pop(), self.source.number(*token.span("weight")))
            case ")" if pieces.rounds:
                pieces.multiply(pieces.rounds.pop(), _ROUND)
            case "]" if pieces.squares:
                pieces.multiply(pieces.squares.pop(), _SQUARE)
            case text if text.startswith("\\"):
                pieces.add(Text(text[1:]))
            case text:
                for node in _broken(text):
                    pieces.add(node)

    def _open(self, brackets: list[int], position: int, pieces: "_Pieces") -> None:
        # Each piece is multiplied once for each bracket around it, so their number bounds the time.
        self.source.deeper(len(brackets), MAX_DEPTH, position)
        brackets.append(len(pieces.nodes))

    def _edited(self, bracket: Bracket) -> Node:
        options = tuple(self.read(*span) for span in bracket.options)
        if bracket.when is None:
            return Alternate(options)
        before, after = options
        return Edit(before=before, after=after, when=bracket.when)


class _Pieces:
    """What was read so far, with a weight for each piece, multiplied when a bracket closes.

    Round and square brackets pair independently of each other, so `(a [b) c]` has a meaning though it is no tree.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.weights: list[float] = []
        self.rounds: list[int] = []
        self.squares: list[int] = []

    def add(self, node: Node) -> None:
        self.nodes.append(node)
        self.weights.append(1.0)

    def multiply(self, begin: int, factor: float) -> None:
        self.weights[begin:] = [weight * factor for weight in self.weights[begin:]]

    def closed(self) -> Node:
        """Everything as one node; brackets still open reach to the end."""
        for begin in self.rounds:
            self.multiply(begin, _ROUND)
        for begin in self.squares:
            self.multiply(begin, _SQUARE)
        return sequence(
            [
                node if weight == 1.0 or isinstance(node, Break) else Weighted(node, weight)
                for node, weight in zip(self.nodes, self.weights, strict=True)
            ]
        )


def _broken(text: str) -> list[Node]:
    """Text with its BREAKs."""
    nodes: list[Node] = []
    parts = _BREAK.split(text)
    for index, whole in enumerate(parts):
        part = whole
        if index > 0:
            nodes.append(Break())
            part = part.lstrip()
        if index < len(parts) - 1:
            part = part.rstrip()
        if part:
            nodes.append(Text(part))
    return nodes
