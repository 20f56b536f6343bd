"""Several reference pictures at once: in one softmax, or each apart in its part of the grid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from undertow.adapters.image_prompt.projection import Tokens
from undertow.adapters.kind import RowInput
from undertow.errors import InvalidInput
from undertow.nn.attention import ImagePort, ImageTokens
from undertow.unet.config import UNetConfig

Mask = Float[Tensor, "height width"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ImagePromptTokens:
    """Keys and values of reference pictures at one cross-attention. area: a weight for every query; 1 everywhere if
    `None`."""

    keys: Float[Tensor, "1 tokens dim"]
    values: Float[Tensor, "1 tokens dim"]
    gain: float
    area: Float[Tensor, "1 queries"] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class ImagePromptRow(RowInput):
    """Reference pictures that share one softmax in a row. sites: the cross-attentions where they act, by name."""

    sites: Mapping[str, ImagePromptTokens]

    @property
    def shape(self) -> tuple[int, ...]:
        """How many tokens there are."""
        return tuple(sorted({one.keys.shape[1] for one in self.sites.values()}))


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """Tokens that share a softmax, and where they act (everywhere if `None`): one entry of the image port. Keys and
    values come from `ImagePrompt.keys_values`, areas from `areas`."""

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


def image_port(config: UNetConfig, inputs: Sequence[Sequence[ImagePromptRow]], like: Tensor) -> ImagePort | None:
    """The image port of a batch: entry n of a cross-attention holds the n-th set of reference pictures of each row;
    rows with fewer have gain 0 there. inputs: for each row, what acts in it. like: a tensor of the network's type and
    device."""
    if not any(inputs):
        return None
    port: dict[str, tuple[ImageTokens, ...]] = {}
    for site, width in config.cross_attentions().items():
        here = [[one.sites[site] for one in row if site in one.sites] for row in inputs]
        count = max(len(row) for row in here)
        if count:
            columns = ([row[index] if index < len(row) else None for row in here] for index in range(count))
            port[site] = tuple(_entry(column, width, like) for column in columns)
    return port


def _entry(column: Sequence[ImagePromptTokens | None], width: int, like: Tensor) -> ImageTokens:
    """One entry for all rows; tokens are padded to the longest, and padding is masked."""
    seen = [one for one in column if one is not None]
    longest = max(one.keys.shape[1] for one in seen)
    nothing = like.new_zeros(1, longest, width)

    def padded(tokens: Tensor) -> Tensor:
        return F.pad(tokens.to(like), (0, 0, 0, longest - tokens.shape[1]))

    mask = area = None
    if any(one.keys.shape[1] < longest for one in seen):
        # Rows without a picture look at zeros, at gain 0: with all their tokens masked there would be no softmax.
        lengths = torch.tensor([longest if one is None else one.keys.shape[1] for one in column], device=like.device)
        mask = torch.arange(longest, device=like.device)[None] < lengths[:, None]
    areas = [one.area for one in seen if one.area is not None]
    if areas:
        everywhere = torch.ones_like(areas[0])
        area = torch.cat([everywhere if one is None or one.area is None else one.area for one in column]).to(like)
    return ImageTokens(
        keys=torch.cat([nothing if one is None else padded(one.keys) for one in column]),
        values=torch.cat([nothing if one is None else padded(one.values) for one in column]),
        gain=torch.tensor([0.0 if one is None else one.gain for one in column], device=like.device),
        mask=mask,
        area=area,
    )
