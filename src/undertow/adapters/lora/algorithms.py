"""From the tensors of one layer to its update: which algorithm they are of, as `recognition.py` tells it, and the scale
that the file means.

The scale is alpha / rank. LyCORIS and kohya write alpha as a tensor beside the others, where 0 means the rank, as does
its absence; PEFT writes it elsewhere (`peft.py`).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from jaxtyping import Shaped
from torch import Tensor

from undertow.adapters.lora.additive import Difference, Hadamard, Kronecker, LowRank
from undertow.adapters.lora.recognition import recognize
from undertow.adapters.lora.updates import MatrixUpdate, Update
from undertow.adapters.lora.weight_dependent import ChannelScale, GeneralizedLora, Orthogonal, WeightDecomposed

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
