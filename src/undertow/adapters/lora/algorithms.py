"""From the tensors of one layer to its update: which algorithm they are of, by their leaves (`leaves.py`), whether they
are all there, and the scale that the file means.

The scale is alpha / rank. LyCORIS and kohya write alpha as a tensor beside the others, where 0 means the rank, as does
its absence; PEFT writes it elsewhere (`peft.py`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from jaxtyping import Shaped
from torch import Tensor

from undertow.adapters.lora.additive import Difference, Hadamard, Kronecker, LowRank
from undertow.adapters.lora.updates import MatrixUpdate, Update
from undertow.adapters.lora.weight_dependent import ChannelScale, GeneralizedLora, Orthogonal, WeightDecomposed

Name = Literal["lora", "loha", "lokr", "glora", "ia3", "oft", "norm", "full"]
Choice = frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """title: for messages. needs: leaves that must be present; each entry can be satisfied by any one of several sets
    of leaves. may: leaves that are allowed besides."""

    title: str
    needs: tuple[tuple[Choice, ...], ...]
    may: frozenset[str] = frozenset()

    @property
    def own(self) -> frozenset[str]:
        """Every leaf that identifies this algorithm."""
        return frozenset().union(*(choice for need in self.needs for choice in need))

    def missing(self, leaves: frozenset[str]) -> frozenset[str]:
        """Required leaves that are not there; where one of several sets suffices, those of the most complete set."""
        wanting: set[str] = set()
        for need in self.needs:
            nearest = min(need, key=lambda choice: (len(choice - leaves), -len(choice & leaves)))
            wanting |= nearest - leaves
        return frozenset(wanting)


def _all(*leaves: str) -> tuple[tuple[Choice, ...], ...]:
    return tuple((frozenset({leaf}),) for leaf in leaves)


_DECOMPOSED = {"alpha", "dora_scale", "magnitude", "diff_b"}

ALGORITHMS: Mapping[Name, Algorithm] = {
    "lora": Algorithm(title="LoRA", needs=_all("down", "up"), may=frozenset({"mid", "up_bias"} | _DECOMPOSED)),
    "loha": Algorithm(
        title="LoHa",
        needs=_all("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
        may=frozenset({"hada_t1", "hada_t2"} | _DECOMPOSED),
    ),
    "lokr": Algorithm(
        title="LoKr",
        needs=tuple((frozenset({f"lokr_{w}"}), frozenset({f"lokr_{w}_a", f"lokr_{w}_b"})) for w in ("w1", "w2")),
        may=frozenset({"lokr_t2"} | _DECOMPOSED),
    ),
    "glora": Algorithm(title="GLoRA", needs=_all("a1", "a2", "b1", "b2"), may=frozenset({"bm", "alpha", "diff_b"})),
    "ia3": Algorithm(title="IA3", needs=_all("weight", "on_input")),
    "oft": Algorithm(title="OFT", needs=_all("oft_blocks"), may=frozenset({"rescale", "alpha", "diff_b"})),
    "norm": Algorithm(
        title="a norm's difference",
        needs=((frozenset({"w_norm"}), frozenset({"b_norm"})),),
        may=frozenset({"w_norm", "b_norm", "alpha"}),
    ),
    "full": Algorithm(
        title="a whole difference",
        needs=((frozenset({"diff"}), frozenset({"diff_b"})),),
        may=frozenset({"diff", "diff_b", "alpha"}),
    ),
}
"""`diff_b` alone is a difference, and beside another algorithm it belongs to that."""


class UnreadableLayer(Exception):
    """The tensors of one layer do not make an update. The message completes "the layer NAME ..."."""


def recognize(leaves: frozenset[str]) -> Name:
    """The name of the algorithm in `ALGORITHMS`. Errors: `UnreadableLayer` for an incomplete one, and for several."""
    shown: list[Name] = [
        name
        for name, algorithm in ALGORITHMS.items()
        if algorithm.own & leaves and not (name == "full" and "diff" not in leaves)
    ]
    if not shown and "diff_b" in leaves:
        return "full"
    if len(shown) != 1:
        if not shown:
            raise UnreadableLayer(f"has {_listed(leaves)} and nothing to go with it")
        raise UnreadableLayer(f"mixes {' and '.join(ALGORITHMS[name].title for name in shown)}")
    algorithm = ALGORITHMS[shown[0]]
    missing = algorithm.missing(leaves)
    if missing:
        raise UnreadableLayer(f"has {_listed(leaves & algorithm.own)} without {_listed(missing)} ({algorithm.title})")
    foreign = leaves - algorithm.own - algorithm.may
    if foreign:
        raise UnreadableLayer(f"has {_listed(foreign)}, which {algorithm.title} has not")
    if len(leaves & {"hada_t1", "hada_t2"}) == 1:
        raise UnreadableLayer("has one of hada_t1 and hada_t2 without the other")
    return shown[0]


def _listed(leaves: frozenset[str]) -> str:
    return ", ".join(sorted(leaves))


Leaves = Mapping[str, Shaped[Tensor, "..."]]
Scale = Callable[[int | None], float]
"""The scale for the rank that the tensors show; `None` where they show none."""


def build_update(leaves: Leaves, alpha: float | None, scale: Scale) -> Update:
    """The update that the tensors of one layer describe. alpha: the layer's own, which is not among the leaves. Errors:
    `UnreadableLayer`."""
    present = frozenset(leaves) if alpha is None else frozenset({*leaves, "alpha"})
    match recognize(present):
        case "lora":
            update = _low_rank(leaves, scale(leaves["down"].shape[0]))
        case "loha":
            update = _hadamard(leaves, scale)
        case "lokr":
            update = _kronecker(leaves, scale)
        case "glora":
            update = _generalized(leaves, scale)
        case "ia3":
            update = ChannelScale(factor=leaves["weight"], on_input=bool(leaves["on_input"].flatten()[0]))
        case "oft":
            blocks = leaves["oft_blocks"]
            outputs = blocks.shape[-3] * blocks.shape[-1] if blocks.ndim > 2 else 0
            # What is called alpha here is the constraint, per output.
            update = Orthogonal(blocks=blocks, rescale=leaves.get("rescale"), constraint=(alpha or 0.0) * outputs)
        case "norm":
            return Difference(weight_change=leaves.get("w_norm"), bias_change=leaves.get("b_norm"), norm=True)
        case "full":
            return Difference(weight_change=leaves.get("diff"), bias_change=leaves.get("diff_b"))
    return _with_bias(_decomposed(update, leaves), leaves)


def _low_rank(leaves: Leaves, scale: float) -> LowRank:
    bias = leaves.get("up_bias")
    return LowRank(
        down=leaves["down"],
        up=leaves["up"],
        mid=leaves.get("mid"),
        scale=scale,
        bias_change=None if bias is None else scale * bias.float(),
    )


def _hadamard(leaves: Leaves, scale: Scale) -> Hadamard:
    return Hadamard(
        w1_a=leaves["hada_w1_a"],
        w1_b=leaves["hada_w1_b"],
        w2_a=leaves["hada_w2_a"],
        w2_b=leaves["hada_w2_b"],
        t1=leaves.get("hada_t1"),
        t2=leaves.get("hada_t2"),
        scale=scale(leaves["hada_w1_b"].shape[0]),
    )


def _kronecker(leaves: Leaves, scale: Scale) -> Kronecker:
    update = Kronecker(
        w1=leaves.get("lokr_w1"),
        w1_a=leaves.get("lokr_w1_a"),
        w1_b=leaves.get("lokr_w1_b"),
        w2=leaves.get("lokr_w2"),
        w2_a=leaves.get("lokr_w2_a"),
        w2_b=leaves.get("lokr_w2_b"),
        t2=leaves.get("lokr_t2"),
    )
    return replace(update, scale=scale(update.rank))


def _generalized(leaves: Leaves, scale: Scale) -> GeneralizedLora:
    a1, a2, b1, b2 = (leaves[leaf] for leaf in ("a1", "a2", "b1", "b2"))
    # LyCORIS before version 2 called each half of a product by the other's name.
    if a1.shape[0] < a1.shape[1] or (a1.shape[0] == a1.shape[1] and b1.shape[0] < b1.shape[1]):
        a1, a2, b1, b2 = a2, a1, b2, b1
    return GeneralizedLora(a1=a1, a2=a2, b1=b1, b2=b2, bm=leaves.get("bm"), scale=scale(a2.shape[0]))


def _decomposed(update: Update, leaves: Leaves) -> Update:
    """Under a magnitude, if there is one. PEFT's has one number per output in any shape; LyCORIS' shape shows the axis,
    and a vector is per output (KohakuBlueleaf/LyCORIS issue 216)."""
    if not isinstance(update, MatrixUpdate):
        return update
    bias, update = update.bias_change, replace(update, bias_change=None)
    if "magnitude" in leaves:
        return WeightDecomposed(inner=update, magnitude=leaves["magnitude"], bias_change=bias)
    if "dora_scale" in leaves:
        scale = leaves["dora_scale"]
        over_inputs = scale.ndim > 1 and scale.shape[0] == 1 and scale.numel() > 1
        return WeightDecomposed(inner=update, magnitude=scale, over_inputs=over_inputs, bias_change=bias)
    return replace(update, bias_change=bias)


def _with_bias(update: Update, leaves: Leaves) -> Update:
    change = leaves.get("diff_b")
    if change is None:
        return update
    return replace(update, bias_change=change if update.bias_change is None else update.bias_change + change.float())
