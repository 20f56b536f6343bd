"""The image port of a batch: the reference pictures of every row, side by side."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from undertow.adapters.row_inputs import ImagePromptRow, ImagePromptTokens, SideInput
from undertow.nn.attention import ImagePort, ImageTokens
from undertow.unet.config import UNetConfig


def image_port(config: UNetConfig, side_inputs: Sequence[Sequence[SideInput]], like: Tensor) -> ImagePort | None:
    """Entry n of a cross-attention is the n-th picture that acts there in each row; rows with fewer see nothing in its
    place. side_inputs: what acts in each row. like: of the type and on the device of the network."""
    pictures = [[one for one in acting if isinstance(one, ImagePromptRow)] for acting in side_inputs]
    if not any(pictures):
        return None
    port: dict[str, tuple[ImageTokens, ...]] = {}
    for site, width in config.cross_attentions().items():
        here = [[one.sites[site] for one in row if site in one.sites] for row in pictures]
        count = max(len(row) for row in here)
        if count:
            columns = ([row[index] if index < len(row) else None for row in here] for index in range(count))
            port[site] = tuple(_entry(column, width, like) for column in columns)
    return port


def _entry(column: Sequence[ImagePromptTokens | None], width: int, like: Tensor) -> ImageTokens:
    """One picture a row; all tokens are of the longest picture's number, padded ones masked."""
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
