"""The syntax tree that every prompt dialect is parsed to.

    Text, Embedding, Break, Tag      leaves: words, a textual inversion by name, the end of a chunk, what is not text
    Weighted, Sequence               emphasis, and one thing after another
    Edit, Alternate, Swap            text that differs between steps: `resolve` replaces them
    Composed                         several prompts, each with its own guidance: `resolve` takes them apart
    Blend, Joined                    several prompts, each encoded alone, then mixed or put side by side

Nodes are values: equal trees compare equal, and a tree can be the key of a cache.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TypeVar

from undertow.errors import InvalidInput

MAX_DEPTH = 64
"""Deepest nesting that a parser follows. No picture needs it; without a limit, `((((...` exhausts Python's stack."""


@dataclass(frozen=True)
class Text:
    """Words, as they go to the tokenizer."""

    text: str


@dataclass(frozen=True)
class Embedding:
    """A textual inversion, asked for by name."""

    name: str


@dataclass(frozen=True)
class Break:
    """What follows starts a new chunk."""


@dataclass(frozen=True, kw_only=True)
class Tag:
    """Something in a prompt that is not text: `<lora:name:0.8>` or `withLora(name, 0.8)`; for the caller to act on."""

    kind: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Weighted:
    """Emphasis: the weights of nested nodes multiply."""

    child: "Node"
    weight: float


@dataclass(frozen=True)
class Sequence:
    """Nodes one after another, with nothing between them."""

    children: tuple["Node", ...]


@dataclass(frozen=True, kw_only=True)
class When:
    """A place in a sampling run: a number of steps, or a fraction of them all."""

    value: float
    fraction: bool

    def steps(self, steps: int) -> int:
        """The first step, counted from 0, that lies behind this place."""
        return min(steps, int(self.value * steps if self.fraction else self.value))


@dataclass(frozen=True, kw_only=True)
class Edit:
    """`before` until `when`, then `after`."""

    before: "Node"
    after: "Node"
    when: When


@dataclass(frozen=True)
class Alternate:
    """One option a step, in turn."""

    options: tuple["Node", ...]


@dataclass(frozen=True, kw_only=True)
class Swap:
    """`edited` from the fraction `start` of the steps to the fraction `end`, `original` outside.

    The tool that has it keeps the attention maps of the original meanwhile (Prompt-to-Prompt, arXiv:2208.01626), for
    the fraction given by shape_freedom. Here the words change and nothing else, which a note says.
    """

    original: "Node"
    edited: "Node"
    start: float = 0.2
    end: float = 1.0


@dataclass(frozen=True)
class Composed:
    """Prompts with guidance of their own: the predictions, not the texts, are added (arXiv:2206.01714, Eq. 11)."""

    parts: tuple["Node", ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Blend:
    """The weighted sum of the parts' embeddings; with `normalize`, weights are divided by their sum."""

    parts: tuple["Node", ...]
    weights: tuple[float, ...]
    normalize: bool = True

    def require_sum(self) -> None:
        """Errors: `InvalidInput` for weights that nothing can be divided by the sum of."""
        if self.normalize and sum(self.weights) == 0:
            weights = list(self.weights)
            raise InvalidInput("blend weights", weights, "a sum other than 0", "add no_normalize to keep them")


@dataclass(frozen=True)
class Joined:
    """The parts' embeddings, one behind the other along the tokens."""

    parts: tuple["Node", ...]
    weights: tuple[float, ...]


Node = Text | Embedding | Break | Tag | Weighted | Sequence | Edit | Alternate | Swap | Composed | Blend | Joined

NOTHING = Sequence(())
"""The empty prompt."""


@dataclass(frozen=True, kw_only=True)
class ParsedPrompt:
    """A prompt after parsing. dialect: whose rules encode it. notes: what a report must say about how it was read."""

    tree: Node
    dialect: str = "plain"
    tags: tuple[Tag, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fragment:
    """What a tokenizer reads in one go, with its weight."""

    leaf: Text | Embedding
    weight: float = 1.0


def fragments(tree: Node, *, merge: bool = True) -> list[Fragment | Break]:
    """The leaves in order, each with the product of the weights around it.

    merge: neighboring texts of equal weight become one, so that `[fe|]male` is one word. Errors: `InvalidInput` for a
    tree that must be resolved or taken apart first, and for weights whose product is not a number.
    """
    found: list[Fragment | Break] = []
    for weight, neighbors in groupby(_leaves(tree), key=_weight_of_text):
        if merge and weight is not None:
            found.append(Fragment(Text("".join(map(_text, neighbors))), weight))
        else:
            found += neighbors
    for part in found:
        if isinstance(part, Fragment) and not math.isfinite(part.weight):
            raise InvalidInput("weight", part.weight, "a finite number", "the weights around a word multiply")
    return found


def _weight_of_text(part: Fragment | Break) -> float | None:
    """None for what is not text."""
    return part.weight if isinstance(part, Fragment) and isinstance(part.leaf, Text) else None


def _text(part: Fragment | Break) -> str:
    return part.leaf.text if isinstance(part, Fragment) and isinstance(part.leaf, Text) else ""


def _leaves(tree: Node) -> list[Fragment | Break]:
    match tree:
        case Text() | Embedding():
            return [Fragment(tree)]
        case Break():
            return [tree]
        case Tag():
            return []
        case Weighted(child, weight):
            inner = _leaves(child)
            return [p if isinstance(p, Break) else Fragment(p.leaf, p.weight * weight) for p in inner]
        case Sequence(children):
            return [leaf for child in children for leaf in _leaves(child)]
        case _:
            raise InvalidInput(
                "prompt", f"a {type(tree).__name__} inside a text", "text with weights", "resolve the prompt first"
            )


def children(tree: Node) -> tuple[Node, ...]:
    """The nodes directly below, in order."""
    match tree:
        case Weighted(child):
            return (child,)
        case Sequence(nodes) | Alternate(nodes) | Composed(nodes) | Joined(nodes):
            return nodes
        case Blend(parts=parts):
            return parts
        case Edit(before=first, after=second) | Swap(original=first, edited=second):
            return (first, second)
        case _:
            return ()


Kind = TypeVar("Kind")


def find_all(tree: Node, kind: type[Kind]) -> list[Kind]:
    """The nodes of one kind, in order."""
    found = [tree] if isinstance(tree, kind) else []
    return found + [leaf for child in children(tree) for leaf in find_all(child, kind)]


def map_texts(tree: Node, change: Callable[[str], str]) -> Node:
    """A resolved tree with other words."""
    match tree:
        case Text(text):
            return Text(change(text))
        case Weighted(child, weight):
            return Weighted(map_texts(child, change), weight)
        case Sequence(nodes):
            return Sequence(tuple(map_texts(node, change) for node in nodes))
        case Joined(parts, weights):
            return Joined(tuple(map_texts(part, change) for part in parts), weights)
        case Blend(parts=parts):
            return replace(tree, parts=tuple(map_texts(part, change) for part in parts))
        case _:
            return tree


def sequence(nodes: "list[Node]") -> Node:
    """The nodes as one; a single node stays itself."""
    return nodes[0] if len(nodes) == 1 else Sequence(tuple(nodes))
