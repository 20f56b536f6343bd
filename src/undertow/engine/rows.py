"""The unit of batching: a row of a U-Net's batch, and how rows of unlike requests become one forward."""

from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from undertow.unet.conditioning import Conditioning, concatenate

T = TypeVar("T")

Network = Callable[[Tensor, Tensor, Conditioning], Tensor]
"""(latents [rows, ...], timesteps [rows], conditioning) -> predictions: a `UNet`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One evaluation that somebody waits for. unet: who answers. latents: scaled, with the extra channels of models
    that have some. conditioning: of one row."""

    unet: Network
    latents: Float[Tensor, "1 channels height width"]
    timestep: Float32[Tensor, "1"]
    conditioning: Conditioning

    @property
    def key(self) -> Hashable:
        """Equal for rows that can share a forward: the same network, and every tensor of the same shape or absent.

        Contexts of unequal token counts go apart. Padding them would need a mask, and with it another graph and
        other roundings than the row has alone.
        """
        given = (getattr(self.conditioning, field.name) for field in fields(self.conditioning))
        shapes = tuple(None if value is None else tuple(value.shape[1:]) for value in given)
        return id(self.unet), tuple(self.latents.shape[1:]), self.latents.dtype, shapes


Steps = Generator[Sequence[Row], Sequence[Tensor], T]
"""Yields rows, receives the prediction of each [1, channels, height, width], returns a T."""


def forward(rows: Sequence[Row], padded_to: int | None = None) -> list[Float[Tensor, "1 channels height width"]]:
    """The predictions of rows with equal keys, by one call of their U-Net.

    padded_to: compute at least this many rows, by repeating the first: results are bit-equal for equal counts,
    whatever the other rows are.
    """
    count = len(rows) if padded_to is None else max(len(rows), padded_to)
    padded = [*rows, *[rows[0]] * (count - len(rows))]
    predictions = rows[0].unet(
        torch.cat([row.latents for row in padded]),
        torch.cat([row.timestep for row in padded]),
        concatenate([row.conditioning for row in padded]),
    )
    return list(predictions[: len(rows)].split(1))
