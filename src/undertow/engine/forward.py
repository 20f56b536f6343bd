"""How rows of unlike requests become one forward of their U-Net."""

from collections.abc import Sequence

import torch

from undertow.engine.control import residual_port
from undertow.engine.image_tokens import image_port
from undertow.engine.rows import Outcome, Row
from undertow.engine.runner import EAGER, Runner
from undertow.errors import InvalidInput
from undertow.nn.adaptable import WeightRows
from undertow.unet.conditioning import Ports, concatenate
from undertow.unet.free_u import free_u_factors
from undertow.unet.perturbation import first_self_attention, perturbed_rows


def forward(rows: Sequence[Row], padded_to: int | None = None, runner: Runner = EAGER) -> list[Outcome]:
    """The outcomes of rows with equal keys, by one call of their U-Net, after one of each ControlNet that some use.

    padded_to: compute at least this many rows, by repeating the first: results are bit-equal for equal counts,
    whatever the other rows are. runner: of all these networks.
    """
    count = len(rows) if padded_to is None else max(len(rows), padded_to)
    padded = [*rows, *[rows[0]] * (count - len(rows))]
    unet = rows[0].unet
    inputs = (
        torch.cat([row.latents for row in padded]),
        torch.cat([row.timestep for row in padded]),
        concatenate([row.conditioning for row in padded]),
    )
    ports = _ports(padded, count if padded_to is not None else None, runner)
    # What some rows observe changes no bit of the predictions.
    sites = {name: first_self_attention(unet.config, name) for row in rows for name in row.observed}
    output = runner.run(unet, *inputs, ports, tuple(sorted(set(sites.values()))))
    # A sum is finite when all that it adds is: one reduction tells for every row, in a type that does not overflow.
    finite = output.prediction.sum(dim=(1, 2, 3), dtype=torch.float32).isfinite().tolist()
    return [
        Outcome(
            prediction=output.prediction[index : index + 1],
            finite=finite[index],
            observations={name: output.observations[sites[name]][index : index + 1] for name in row.observed},
        )
        for index, row in enumerate(rows)
    ]


def fit_together(rows: Sequence[Row]) -> bool:
    """Whether rows with equal keys can share a forward: whether there are slots for all their adapters."""
    adapters = [row.adapters for row in rows if row.adapters is not None]
    return not adapters or adapters[0].manager.fits(adapters)


def _weights(rows: Sequence[Row], runner: Runner) -> WeightRows | None:
    """The weight port of rows, all of which have adapters or none."""
    adapters = [row.adapters for row in rows if row.adapters is not None]
    if not adapters:
        return None
    if adapters[0].merged and not runner.capabilities.merging:
        raise InvalidInput("adapters", "merged", "adapters in slots: this runner's weights cannot change")
    return adapters[0].manager.prepare_weights(adapters, fixed_shapes=runner.capabilities.fixed_shapes)


def _ports(rows: Sequence[Row], at_once: int | None, runner: Runner) -> Ports | None:
    """What adapters and guidance do to the network; `None` leaves it as it is. at_once: rows of every forward of a
    ControlNet."""
    config, device = rows[0].unet.config, rows[0].latents.device
    perturbed = any(row.perturbation is not None for row in rows)
    freed = any(row.free_u is not None for row in rows)
    side_inputs = [() if row.adapters is None else row.adapters.side_inputs for row in rows]
    ports = Ports(
        weights=_weights(rows, runner),
        residuals=residual_port(rows, side_inputs, at_once, runner),
        image=image_port(config, side_inputs, like=rows[0].latents),
        self_attention=perturbed_rows(config, [row.perturbation for row in rows], device) if perturbed else None,
        free_u=free_u_factors(config, [row.free_u for row in rows], device) if freed else None,
    )
    return None if ports == Ports() else ports
