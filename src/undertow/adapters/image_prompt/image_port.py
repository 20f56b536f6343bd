"""Several reference pictures at once: in one softmax, or each apart in its part of the grid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from undertow.adapters.image_prompt.projection import Tokens
from undertow.errors import InvalidInput

Mask = Float[Tensor, "height width"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """What one entry of the image port is made of: tokens that share a softmax, and where they act (everywhere when
    `None`). Keys and values come from `ImagePrompt.keys_values`, areas from `areas`."""

    tokens: Float[Tensor, "1 image_tokens context"]
    mask: Mask | None = None


def combine(tokens: Tokens, masks: Sequence[Mask] | None = None) -> tuple[Reference, ...]:
    """The pictures of one adapter as entries of the image port.

    Without masks all their tokens are side by side in one softmax; with masks, one of each, every picture has its own
    and they are added. The two are not equal, not even for masks of ones (diffusers' IPAdapterAttnProcessor). The
    unconditional tokens of the same request are combined in the same way.
    Errors: `InvalidInput` for no picture, another count of masks, and masks that are empty or hold no numbers.
    """
    if len(tokens) == 0:
        raise InvalidInput("tokens", "of no picture", "those of one or more")
    if masks is None:
        return (Reference(tokens=tokens.flatten(0, 1)[None]),)
    if len(masks) != len(tokens):
        raise InvalidInput("masks", f"{len(masks)}", f"{len(tokens)}, one of each picture", "or none at all")
    for index, mask in enumerate(masks):
        if mask.ndim != 2 or mask.numel() == 0:
            raise InvalidInput(f"masks[{index}]", list(mask.shape), "[height, width]")
        if not mask.isfinite().all():
            raise InvalidInput(f"masks[{index}]", "not finite", "numbers from 0 to 1")
    return tuple(Reference(tokens=one[None], mask=mask) for one, mask in zip(tokens, masks, strict=True))


def areas(mask: Mask, grids: Mapping[str, tuple[int, int]]) -> Mapping[str, Float[Tensor, "1 queries"]]:
    """`ImageTokens.area` of every cross-attention: the mask at the grid that it looks from, stretched to it.

    grids: rows and columns by name, `UNetConfig.attention_grids`; diffusers guesses them from the mask's proportions,
    and is wrong at sizes that do not divide. Bicubic as diffusers does it, not clamped: beside a hard edge, values
    leave [0, 1] a little (a cell at 1.1 follows the picture 1.1 times), and clamping them would be another result.
    """
    maps = {
        grid: F.interpolate(mask[None, None].float(), size=grid, mode="bicubic").flatten(1)
        for grid in set(grids.values())
    }
    return {site: maps[grid] for site, grid in grids.items()}
