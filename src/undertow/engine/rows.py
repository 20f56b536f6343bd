"""The unit of batching: a row of a U-Net's batch, and how rows of unlike requests become one forward."""

from collections.abc import Generator, Hashable, Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from undertow.adapters.host import RowAdapters
from undertow.diffusion.guidance import Perturbation
from undertow.nn.adaptable import WeightRows
from undertow.unet.conditioning import Conditioning, Ports, concatenate
from undertow.unet.free_u import FreeU, free_u_factors
from undertow.unet.perturbation import perturbed_rows
from undertow.unet.unet import UNet

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One evaluation that somebody waits for. unet: who answers. latents: scaled, with the extra channels of models
    that have some. conditioning: of one row. adapters: what acts in this row; `None` for networks that have none.
    perturbation, free_u: what guidance does to the network in this row. middle_attention: whether the bottleneck's
    attention is wanted as well."""

    unet: UNet
    latents: Float[Tensor, "1 channels height width"]
    timestep: Float32[Tensor, "1"]
    conditioning: Conditioning
    adapters: RowAdapters | None = None
    perturbation: Perturbation | None = None
    free_u: FreeU | None = None
    middle_attention: bool = False

    @property
    def key(self) -> Hashable:
        """Equal for rows that can share a forward: the same network with the same weights merged, and every tensor of
        the same shape or absent.

        Contexts of unequal token counts go apart. Padding them would need a mask, and with it another graph and
        other roundings than the row has alone.
        """
        given = (getattr(self.conditioning, field.name) for field in fields(self.conditioning))
        shapes = tuple(None if value is None else tuple(value.shape[1:]) for value in given)
        merged = None if self.adapters is None else self.adapters.key
        return id(self.unet), tuple(self.latents.shape[1:]), self.latents.dtype, shapes, merged


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What came of a row. attention: of rows with `middle_attention`, how much each cell of the bottleneck receives."""

    prediction: Float[Tensor, "1 channels height width"]
    attention: Float[Tensor, "1 cells_high cells_wide"] | None = None


Steps = Generator[Sequence[Row], Sequence[Outcome], T]
"""Yields rows, receives an outcome for each, returns a T."""


def forward(rows: Sequence[Row], padded_to: int | None = None) -> list[Outcome]:
    """The outcomes of rows with equal keys, by one call of their U-Net.

    padded_to: compute at least this many rows, by repeating the first: results are bit-equal for equal counts,
    whatever the other rows are.
    """
    count = len(rows) if padded_to is None else max(len(rows), padded_to)
    padded = [*rows, *[rows[0]] * (count - len(rows))]
    unet = rows[0].unet
    inputs = (
        torch.cat([row.latents for row in padded]),
        torch.cat([row.timestep for row in padded]),
        concatenate([row.conditioning for row in padded]),
    )
    ports = _ports(padded, _weights(padded))
    if any(row.middle_attention for row in rows):  # which changes no bit of the predictions
        found = unet.forward_with_attention(*inputs, ports)
        parts = zip(found.prediction.split(1), found.attention.split(1), strict=True)
        return [Outcome(prediction=prediction, attention=attention) for prediction, attention in parts][: len(rows)]
    return [Outcome(prediction=prediction) for prediction in unet(*inputs, ports).split(1)[: len(rows)]]


def fit_together(rows: Sequence[Row]) -> bool:
    """Whether rows with equal keys can share a forward: whether there are slots for all their adapters."""
    adapters = [row.adapters for row in rows if row.adapters is not None]
    return not adapters or adapters[0].host.fits(adapters)


def _weights(rows: Sequence[Row]) -> WeightRows | None:
    """The weight port of rows, all of which have adapters or none."""
    adapters = [row.adapters for row in rows if row.adapters is not None]
    return adapters[0].host.arrange(adapters) if adapters else None


def _ports(rows: Sequence[Row], weights: WeightRows | None) -> Ports | None:
    """What adapters and guidance do to the network; `None` leaves it as it is."""
    perturbed = any(row.perturbation is not None for row in rows)
    freed = any(row.free_u is not None for row in rows)
    if not (perturbed or freed or weights is not None):
        return None
    config, device = rows[0].unet.config, rows[0].latents.device
    return Ports(
        weights=weights,
        self_attention=perturbed_rows(config, [row.perturbation for row in rows], device) if perturbed else None,
        free_u=free_u_factors(config, [row.free_u for row in rows], device) if freed else None,
    )
