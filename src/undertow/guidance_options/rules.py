"""What guidance may be told, whichever method it is: words, layers, cells and an order. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from undertow.errors import InvalidInput
from undertow.known_names import PathName

Space = Literal["denoised", "prediction", "v"]
"""What a formula that is not linear is applied to: the estimate of x0; the network's own prediction, as in diffusers;
v, whatever the network predicts, as in ComfyUI's RescaleCFG."""

Role = Literal["base", "term", "finish"]
"""A base replaces the estimate and comes first, a term adds to it, a finish works on their result."""

Kind = Literal["identity", "blurred"]
Origin = Literal["conditional", "unconditional"]
SeenSide = Literal["unconditional", "conditional"]
Keyed = Literal["channels", "index"]
Version = Literal[1, 2]

ORDER: tuple[Role, ...] = ("base", "term", "finish")

BLUR_REACH = 4
"""Cells on either side that self-attention guidance blurs over: the kernel of nine that diffusers and ComfyUI use."""


def require_word(name: str, value: object, words: Any) -> None:
    """Errors: `InvalidInput` for what is none of the words of a `Literal`: they may come from a command line."""
    allowed = get_args(words)
    if value not in allowed:
        raise InvalidInput(name, repr(value), f"one of {', '.join(map(str, allowed))}")


def require_space(name: str, space: Space, path: PathName | None) -> None:
    """path: of the network; `None` where it is not known. Errors: `InvalidInput` for v on another path than the
    variance-preserving one."""
    if space == "v" and path not in ("VariancePreserving", None):
        raise InvalidInput(f"{name} in", "v", "the prediction of a flow model", "use the space 'prediction'")


def require_order(argument: str, methods: Sequence[tuple[str, Role]]) -> None:
    """methods: by name, what each does to the estimate. Errors: `InvalidInput` for more than one base, and for methods
    in another order."""
    roles = [ORDER.index(role) for _, role in methods]
    if roles != sorted(roles) or roles.count(0) > 1:
        raise InvalidInput(
            argument,
            ", ".join(f"{name} ({role})" for name, role in methods),
            "at most one base, then terms, then finishes",
            "a base replaces what stands before it",
        )


def require_blurred(height: int, width: int) -> None:
    """height, width: of latents, in cells. Errors: `InvalidInput` for fewer than are blurred."""
    if min(height, width) <= BLUR_REACH:
        raise InvalidInput("latents", [height, width], "at least 5 cells a side", "self-attention guidance blurs them")


@dataclass(frozen=True, kw_only=True)
class Perturbation:
    """The network made worse on purpose, in the self-attention of some layers, for guidance away from it.

    kind: "identity", every cell attends to itself alone (PAG, arXiv:2403.17377); "blurred", queries under a
    Gaussian of `sigma` cells, infinity for their mean (SEG, arXiv:2408.00760). layers: names of modules;
    each stands for all self-attentions in it ("mid_block", "up_blocks.0.attentions.1").
    """

    kind: Kind
    layers: tuple[str, ...] = ("mid_block",)
    sigma: float | None = None

    def __post_init__(self):
        require_word("kind", self.kind, Kind)
        if not self.layers:
            raise InvalidInput("layers", "empty", "at least one layer whose self-attention is perturbed", "mid_block")
        if self.kind == "identity" and self.sigma is not None:
            raise InvalidInput("sigma", self.sigma, "nothing: an identity is not blurred")
        if self.kind == "blurred" and (self.sigma is None or not self.sigma > 0):
            raise InvalidInput(
                "sigma", self.sigma, "a number above 0, in cells", "infinity means the mean of all cells"
            )
