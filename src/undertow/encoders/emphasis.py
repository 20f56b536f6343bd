"""How weights change what a text network returned: one rule of each tool, and none."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from undertow.errors import InvalidInput

Tokens = Float[Tensor, "chunks tokens dim"]
Weights = Float[Tensor, "chunks tokens"]
Fragments = Int[Tensor, "chunks tokens"]


@dataclass(frozen=True, kw_only=True)
class Weighing:
    """What a rule may use. hidden: unweighted. fragments: index of the text that each place came from, -1 for marks.

    empty: the hidden states of an empty prompt, [1, tokens, dim]. without: hidden again, with places that are False
    hidden from the other places.
    """

    hidden: Tokens
    weights: Weights
    fragments: Fragments
    empty: Callable[[], Tokens]
    without: Callable[[Bool[Tensor, "chunks tokens"]], Tokens]


def original(given: Weighing) -> Tokens:
    """A1111's "Original": multiplied, then brought back to the mean it had, each chunk for itself."""
    scaled = no_norm(given)
    before = given.hidden.mean((1, 2), keepdim=True)
    after = scaled.mean((1, 2), keepdim=True)
    # A mean of zero cannot be restored by a factor.
    return torch.where(after == 0, scaled, scaled * (before / torch.where(after == 0, 1.0, after)))


def no_norm(given: Weighing) -> Tokens:
    """A1111's "No norm": multiplied. Better for SDXL."""
    return given.hidden * given.weights[..., None]


def ignore(given: Weighing) -> Tokens:
    """A1111's "Ignore": syntax is read, weights do nothing."""
    return given.hidden


def lerp(given: Weighing) -> Tokens:
    """ComfyUI: from the empty prompt's hidden state through the word's, as far as the weight says."""
    empty = given.empty()
    moved = empty + (given.hidden - empty) * given.weights[..., None]
    return torch.where((given.weights == 1.0)[..., None], given.hidden, moved)


def compel(given: Weighing) -> Tokens:
    """compel: as `lerp`, and each text that weighs less than 1 also fades towards the prompt in which it is hidden.

    At weight w the prompt without the text has tan((1 - w) π/2) times the share of the prompt with it: as much at 0.5,
    all of it at 0. Source: compel's doc/syntax.md and embeddings_provider.py.
    """
    weighted = [lerp(given)]
    shares = [1.0]
    light = sorted(set(given.fragments[given.weights < 1].tolist()))
    if len(light) > MAX_LIGHT:
        raise InvalidInput(
            "weights below 1", f"{len(light)} different texts'", f"at most {MAX_LIGHT}", "each is encoded by itself"
        )
    for fragment in light:
        mine = given.fragments == fragment
        weight = max(float(given.weights[mine][0]), _SMALLEST)
        hidden = given.without(~mine)
        weighted.append(
            lerp(
                Weighing(
                    hidden=hidden,
                    weights=given.weights,
                    fragments=given.fragments,
                    empty=given.empty,
                    without=given.without,
                )
            )
        )
        shares.append(math.tan((1 - weight) * math.pi / 2))
    return mixed(weighted, shares, normalize=True)


MAX_LIGHT = 100
"""Most texts of a prompt that `compel` weakens: the network runs once for each."""

_SMALLEST = 1e-5
"""Below this, the tangent of a vanished weight would be infinite (compel's epsilon)."""


def mixed(parts: list[Tensor], weights: list[float], *, normalize: bool) -> Float[Tensor, "..."]:
    """The weighted sum; with `normalize`, weights are divided by their sum."""
    total = sum(weights) if normalize else 1.0
    return torch.stack([part * (weight / total) for part, weight in zip(parts, weights, strict=True)]).sum(0)


EMPHASIS: dict[str, Callable[[Weighing], Tokens]] = {
    "original": original,
    "no_norm": no_norm,
    "ignore": ignore,
    "lerp": lerp,
    "compel": compel,
}
"""Rules by name. "none" is not among them: it switches syntax off when a prompt is parsed."""
