"""The prompt of one step: edits, alternations and swaps decided, compositions taken apart."""

from dataclasses import replace

from undertow.encoders.prompts.tree import (
    Alternate,
    Blend,
    Composed,
    Edit,
    Joined,
    Node,
    ParsedPrompt,
    Sequence,
    Swap,
    Weighted,
    find_all,
)
from undertow.errors import InvalidInput


def resolve(prompt: ParsedPrompt, step: int, steps: int) -> tuple[tuple[ParsedPrompt, float], ...]:
    """The prompts of `step` (counted from 0) of `steps`, each with its guidance weight; one, unless it is composed.

    With c the prediction for a prompt, w its weight, u the unconditional one and s the guidance scale, the result of
    several is u + s Σ w (c - u) (arXiv:2206.01714, Eq. 11). `[a:b:3]` is a for three steps. A1111's own sampling loop
    counts from 0 against schedules that count from 1, so there each change comes a step later than its page says;
    here the page holds. Errors: `InvalidInput`.
    """
    if not 0 <= step < steps:
        raise InvalidInput("step", step, f"0 to {steps - 1}, of {steps} steps")
    several = prompt.tree if isinstance(prompt.tree, Composed) else Composed((prompt.tree,), (1.0,))
    return tuple(
        (replace(prompt, tree=_at(part, step, steps)), weight)
        for part, weight in zip(several.parts, several.weights, strict=True)
    )


def varies(prompt: ParsedPrompt) -> bool:
    """Whether any two steps may differ."""
    return any(find_all(prompt.tree, kind) for kind in (Edit, Alternate, Swap))


def composed(prompt: ParsedPrompt) -> bool:
    """Whether it is several prompts, each with guidance of its own."""
    return isinstance(prompt.tree, Composed)


def _at(tree: Node, step: int, steps: int) -> Node:
    match tree:
        case Edit(before=before, after=after, when=when):
            return _at(before if step < when.steps(steps) else after, step, steps)
        case Alternate(options):
            return _at(options[step % len(options)], step, steps)
        case Swap(original=original, edited=edited, start=start, end=end):
            return _at(edited if start * steps <= step < end * steps else original, step, steps)
        case Weighted(child, weight):
            return Weighted(_at(child, step, steps), weight)
        case Sequence(nodes):
            return Sequence(tuple(_at(node, step, steps) for node in nodes))
        case Blend(parts=parts):
            return replace(tree, parts=tuple(_at(part, step, steps) for part in parts))
        case Joined(parts, weights):
            return Joined(tuple(_at(part, step, steps) for part in parts), weights)
        case _:
            return tree
