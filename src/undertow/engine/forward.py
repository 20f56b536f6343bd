"""How rows of unlike requests become one forward of their U-Net."""

from collections.abc import Sequence

import torch
from torch import Tensor

from undertow.engine.control import residual_port
from undertow.engine.rows import Outcome, Row
from undertow.engine.seen import image_port
from undertow.nn.adaptable import WeightRows
from undertow.unet.conditioning import Ports, concatenate
from undertow.unet.free_u import free_u_factors
from undertow.unet.perturbation import perturbed_rows


def forward(rows: Sequence[Row], padded_to: int | None = None) -> list[Outcome]:
    """The outcomes of rows with equal keys, by one call of their U-Net, after one of each ControlNet that some use.

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
    ports = _ports(padded, count if padded_to is not None else None)
    if any(row.middle_attention for row in rows):  # which changes no bit of the predictions
        found = unet.forward_with_attention(*inputs, ports)
        return _by_row(found.prediction, found.attention, len(rows))
    return _by_row(unet(*inputs, ports), None, len(rows))


def _by_row(predictions: Tensor, attention: Tensor | None, count: int) -> list[Outcome]:
    """The outcomes of the first rows of a batch."""
    # A sum is finite when all that it adds is: one reduction tells for every row, in a type that does not overflow.
    finite = predictions.sum(dim=(1, 2, 3), dtype=torch.float32).isfinite().tolist()
    maps = [None] * count if attention is None else attention.split(1)
    parts = list(zip(predictions.split(1), finite, maps))[:count]  # noqa: B905 - padding comes behind
    return [Outcome(prediction=prediction, finite=good, attention=seen) for prediction, good, seen in parts]


def fit_together(rows: Sequence[Row]) -> bool:
    """Whether rows with equal keys can share a forward: whether there are slots for all their adapters."""
    adapters = [row.adapters for row in rows if row.adapters is not None]
    return not adapters or adapters[0].host.fits(adapters)


def _weights(rows: Sequence[Row]) -> WeightRows | None:
    """The weight port of rows, all of which have adapters or none."""
    adapters = [row.adapters for row in rows if row.adapters is not None]
    return adapters[0].host.arrange(adapters) if adapters else None


def _ports(rows: Sequence[Row], at_once: int | None) -> Ports | None:
    """What adapters and guidance do to the network; `None` leaves it as it is. at_once: rows of every forward of a
    ControlNet."""
    config, device = rows[0].unet.config, rows[0].latents.device
    perturbed = any(row.perturbation is not None for row in rows)
    freed = any(row.free_u is not None for row in rows)
    beside = [() if row.adapters is None else row.adapters.beside for row in rows]
    ports = Ports(
        weights=_weights(rows),
        residuals=residual_port(rows, beside, at_once),
        image=image_port(config, beside, like=rows[0].latents),
        self_attention=perturbed_rows(config, [row.perturbation for row in rows], device) if perturbed else None,
        free_u=free_u_factors(config, [row.free_u for row in rows], device) if freed else None,
    )
    return None if ports == Ports() else ports
