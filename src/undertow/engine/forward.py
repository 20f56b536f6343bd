"""How rows of unlike requests become one forward of their U-Net."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from undertow.adapters.manager import AdapterManager
from undertow.engine.kept_text import KeptText
from undertow.engine.rows import Outcome, Row
from undertow.unet.conditioning import Ports, concatenate
from undertow.unet.free_u_factors import free_u_factors
from undertow.unet.perturbation import perturbed_rows
from undertow.unet.runner import EAGER, Runner
from undertow.unet.self_attentions import first_self_attention


def forward(
    rows: Sequence[Row],
    manager: AdapterManager | None = None,
    padded_to: int | None = None,
    runner: Runner = EAGER,
    given: Ports | None = None,
    kept: KeptText | None = None,
) -> list[Outcome]:
    """The outcomes of rows with equal keys, by one call of their U-Net, after one of each ControlNet that some use.

    manager: of the adapters that act in the rows; `None` where none can. padded_to: compute at least this many rows, by
    repeating the first: results are bit-equal for equal counts, whatever the other rows are. runner: of all these
    networks, where it can be. given: what is in the ports already: the parts in which layers compute. kept: of the
    texts, read and filled where no row has LoRA in slots.
    """
    count = len(rows) if padded_to is None else max(len(rows), padded_to)
    padded = [*rows, *[rows[0].padding] * (count - len(rows))] if count > len(rows) else list(rows)
    unet = rows[0].unet
    inputs = (
        torch.cat([row.latents for row in padded]),
        torch.cat([row.timestep for row in padded]),
        concatenate([row.conditioning for row in padded]),
    )
    runner = runner if manager is None else manager.runner_for(padded, runner)
    ports = _ports(padded, manager, count if padded_to is not None else None, runner, given)
    if kept is not None and (ports is None or ports.weights is None):
        ports = replace(Ports() if ports is None else ports, text=kept.of(padded))
    elif kept is not None:
        kept.forget()
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


def _ports(
    rows: Sequence[Row],
    manager: AdapterManager | None,
    at_once: int | None,
    runner: Runner,
    given: Ports | None,
) -> Ports | None:
    """What adapters and guidance do to the network; `None` leaves it as it is. at_once: rows of every forward of a
    ControlNet."""
    config, device = rows[0].unet.config, rows[0].latents.device
    ports = Ports() if given is None else given
    ports = ports if manager is None else manager.ports(rows, runner, at_once, ports)
    if any(row.perturbation is not None for row in rows):
        ports = replace(ports, self_attention=perturbed_rows(config, [row.perturbation for row in rows], device))
    if any(row.free_u is not None for row in rows):
        ports = replace(ports, free_u=free_u_factors(config, [row.free_u for row in rows], device))
    return None if ports == Ports() else ports
