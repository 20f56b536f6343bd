"""Everything a forward may receive besides latents and timesteps: `Conditioning` and `Ports`.

Both are data. A field that is `None` is not part of the computation, nor of a compiled graph; values may change freely
from call to call.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from undertow.doors import checked_names_of
from undertow.errors import InvalidInput
from undertow.nn.adaptable import WeightRows
from undertow.nn.attention import ImagePort, KeysAndValues
from undertow.nn.free_u import FreeUFactors
from undertow.nn.perturbation import PerturbedRows

AESTHETIC, NEGATIVE_AESTHETIC = 6.0, 2.5
"""The refiner's scores of what is wanted and what is not (diffusers' defaults)."""


@checked_names_of
@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """What the network is asked to draw.

    context: text tokens for cross-attention. context_mask: True where a token is real (T9: a row without any real
    token gets no text, not NaN). regions: where on the canvas each token may be seen, at any resolution; every level
    takes the maximum over what one of its cells covers (regional prompts, as in InvokeAI). pooled: pooled text vector
    (SDXL). time_ids: size and crop micro-conditioning, raw numbers (SDXL base: original height, width, crop top, left,
    target height, width; refiner: ..., aesthetic score). class_labels: for class-conditional networks. guidance:
    guidance scale as an input (LCM), one number per row.
    """

    context: Float[Tensor, "batch tokens dim"] | None = None
    context_mask: Bool[Tensor, "batch tokens"] | None = None
    regions: Bool[Tensor, "batch tokens rows columns"] | None = None
    pooled: Float[Tensor, "batch pooled_dim"] | None = None
    time_ids: Shaped[Tensor, "batch ids"] | None = None
    class_labels: Int[Tensor, "batch"] | None = None
    guidance: Float[Tensor, "batch"] | None = None

    def repeat(self, count: int) -> "Conditioning":
        """Every row `count` times, for `count` images of one prompt."""
        return replace(
            self,
            **{f.name: v.repeat_interleave(count, 0) for f in fields(self) if (v := getattr(self, f.name)) is not None},
        )

    def rows(self) -> "list[Conditioning]":
        """Every row as a conditioning of its own. Errors: `InvalidInput` when no field is set, because the number of
        rows is then unknown."""
        given = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
        if not given:
            raise InvalidInput("conditioning", "nothing", "at least one field", "its rows are counted by its fields")
        count = len(next(iter(given.values())))
        return [Conditioning(**{name: value[i : i + 1] for name, value in given.items()}) for i in range(count)]

    def to(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Conditioning":
        """The same conditioning on another device; `dtype` applies to embeddings, not to masks, labels, ids and
        guidance."""
        moved = {
            f.name: value.to(device=device, dtype=dtype if f.name in ("context", "pooled") else None)
            for f in fields(self)
            if (value := getattr(self, f.name)) is not None
        }
        return replace(self, **moved)


def concatenate(parts: Sequence[Conditioning]) -> Conditioning:
    """One conditioning with the rows of all `parts`, in order.

    Contexts of different token counts (trap T8) are padded with zeros and masked, which is equivalent to running them
    separately. Errors: `InvalidInput` when there are no parts, and when a field is set in some parts only.
    """
    if not parts:
        raise InvalidInput("parts", "empty", "at least one conditioning")
    if len(parts) == 1:
        return parts[0]
    parts = _with_equal_token_counts(parts)
    joined: dict[str, Tensor] = {}
    for field in fields(Conditioning):
        values = [getattr(part, field.name) for part in parts]
        present = [value for value in values if value is not None]
        if not present:
            continue
        if len(present) < len(values):
            raise InvalidInput(
                f"conditioning.{field.name}",
                f"set in {len(present)} of {len(values)} parts",
                "the same fields in every part of a batch",
                "give every part this field",
            )
        joined[field.name] = torch.cat(present)
    return Conditioning(**joined)


def _with_equal_token_counts(parts: Sequence[Conditioning]) -> Sequence[Conditioning]:
    counts = {part.context.shape[1] for part in parts if part.context is not None}
    masked = any(part.context_mask is not None for part in parts)
    if len(counts) < 2 and not masked:
        return parts
    longest = max(counts, default=0)

    def pad(part: Conditioning) -> Conditioning:
        if part.context is None:
            return part
        missing = longest - part.context.shape[1]
        mask = part.context_mask
        if mask is None:
            mask = torch.ones(part.context.shape[:2], dtype=torch.bool, device=part.context.device)
        return replace(
            part,
            context=F.pad(part.context, (0, 0, 0, missing)),
            context_mask=F.pad(mask, (0, missing), value=False),
            regions=None if part.regions is None else F.pad(part.regions, (0, 0, 0, 0, 0, missing), value=False),
        )

    return [pad(part) for part in parts]


@checked_names_of
@dataclass(frozen=True, kw_only=True)
class Residuals:
    """The residual port: what ControlNets and T2I-Adapters add.

    skips: one tensor per stored skip connection, in the order in which the encoder stores them, or empty;
    `UNetConfig.skip_shapes` lists their shapes. middle: added after the middle block. Trap T4: a ControlNet's residuals
    are added to the *stored skips*, not to the running activations. running: what a T2I-Adapter adds to the running
    activations where the skip of the same place is stored, and so to this skip and to all that follows; one place per
    stored skip, or empty.
    """

    skips: tuple[Float[Tensor, "..."], ...] = ()
    middle: Float[Tensor, "..."] | None = None
    running: tuple[Float[Tensor, "..."] | None, ...] = ()


@checked_names_of
@dataclass(frozen=True, kw_only=True)
class Ports:
    """Where adapters and guidance enter a U-Net; every tensor is per row, and `None` removes a port from the graph.

    weights: which low-rank slots each row uses, and how strongly (LoRA). residuals: additions to skips and middle
    (ControlNet, T2I-Adapter). image: per cross-attention name, e.g.
    "mid_block.attentions.0.transformer_blocks.0.attn2", keys and values of reference pictures (IP-Adapter), one entry
    for each picture that is attended to by itself.
    self_attention: per self-attention name, how it is perturbed (`unet.perturbation`). free_u: per decoder layer, e.g.
    "up_blocks.0.resnets.2", the factors of FreeU (`unet.free_u`). Which names are given is structure, with a graph of
    its own; what is given for them are values. feed_forward_chunks: parts in which feed-forward layers compute their
    tokens, to need less memory; structure too. attention_in_parts: attention computes parts of its queries one after
    the other, for the same reason, where kernels write scores out. text: keys and values of the context by the name of
    the cross-attention, for a caller that evaluates the same context, with the same weights and without slots, many
    times: the first forward fills the dictionary, and others read it in place of projecting the context.
    """

    weights: WeightRows | None = None
    residuals: Residuals | None = None
    image: ImagePort | None = None
    self_attention: Mapping[str, PerturbedRows] | None = None
    free_u: Mapping[str, FreeUFactors] | None = None
    feed_forward_chunks: int = 1
    attention_in_parts: bool = False
    text: dict[str, KeysAndValues] | None = None
