r"""ComfyUI's prompts: `(word)` is 1.1, `(word:1.3)` is 1.3, `\(` is a parenthesis, `embedding:name` an embedding.

A number replaces the weights of the parentheses around it: in `((word:1.2):1.5)` the word weighs 1.2; and `((word))`
multiplies, 1.21. The number is what follows the last colon of a group, if it can be read. There is no BREAK, no AND and
no editing. An embedding's prefix is written in lower case behind a space, a line's end or a parenthesis. Source:
`token_weights` of ComfyUI's sd1_clip.py, and its README under "Notes".
"""

import re

from undertow.encoders.prompts.source import Source
from undertow.encoders.prompts.tree import MAX_DEPTH, Embedding, Node, ParsedPrompt, Text, Weighted, sequence

_ESCAPED = re.compile(r"\\([()])")
_EMBEDDING = re.compile(r"(?:\A|(?<=[ \n]))embedding:(\S*[^\s,])")
_GROUP = 1.1


def parse(text: str) -> ParsedPrompt:
    """The tree of a prompt. Parentheses that do not pair are text. Errors: `PromptError` for weights like `nan`."""
    nodes = _weigh(Source.typed(text), 1.0, depth=0)
    return ParsedPrompt(tree=sequence(nodes), dialect="comfy")


def _weigh(source: Source, weight: float, *, depth: int) -> list[Node]:
    nodes: list[Node] = []
    for start, end, grouped in _groups(source.text):
        if not grouped:
            nodes += [leaf if weight == 1.0 else Weighted(leaf, weight) for leaf in _leaves(source.text[start:end])]
            continue
        inner = source.part(start + 1, end - 1)
        inner_weight = weight * _GROUP
        colon = inner.text.rfind(":")
        if colon > 0 and _reads_as_number(inner.text[colon + 1 :]):
            inner_weight = inner.number(colon + 1, len(inner.text))
            inner = inner.part(0, colon)
        nodes += _weigh(inner, inner_weight, depth=source.deeper(depth, MAX_DEPTH, start))
    return nodes


def _groups(text: str) -> list[tuple[int, int, bool]]:
    """Spans of `text`: outermost parenthesized groups, and what lies between them.

    A parenthesis that closes what none opened takes the next one that opens with it: both are text. A group that is
    still open at the end counts if the text happens to end with a parenthesis: `(a (b)` is `a (b` in a group.
    """
    spans: list[tuple[int, int, bool]] = []
    begin, depth, position, closed = 0, 0, 0, -1
    while position < len(text):
        character = text[position]
        if character == "\\" and text[position + 1 : position + 2] in ("(", ")"):
            position += 2
            continue
        if character == "(":
            if depth == 0:
                spans.append((begin, position, False))
                begin = position
            depth += 1
        elif character == ")":
            depth -= 1
            closed = position
            if depth == 0:
                spans.append((begin, position + 1, True))
                begin = position + 1
        position += 1
    spans.append((begin, len(text), text[begin : begin + 1] == "(" and closed == len(text) - 1 > begin))
    return [span for span in spans if span[0] < span[1]]


def _leaves(text: str) -> list[Node]:
    leaves: list[Node] = []
    position = 0
    for match in _EMBEDDING.finditer(text):
        leaves += [Text(_unescape(text[position : match.start()])), Embedding(_unescape(match[1]))]
        position = match.end()
    leaves.append(Text(_unescape(text[position:])))
    return [leaf for leaf in leaves if leaf != Text("")]


def _unescape(text: str) -> str:
    return _ESCAPED.sub(r"\1", text)


def _reads_as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
