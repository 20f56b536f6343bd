"""Translates the perturbations that guidance asks for, one per row, into the inputs of each self-attention."""

from collections.abc import Mapping, Sequence

import torch

from undertow.errors import InvalidInput
from undertow.guidance_options.rules import Perturbation
from undertow.nn.perturbation import PerturbedRows
from undertow.unet.config import UNetConfig
from undertow.unet.self_attentions import self_attentions_in


def perturbed_rows(
    config: UNetConfig, perturbations: Sequence[Perturbation | None], device: torch.device | str | None = None
) -> Mapping[str, PerturbedRows] | None:
    """`Ports.self_attention` for a batch with these perturbations (`None` for a row without one); `None` when no row
    has any.

    The set of perturbed layers and the kinds of perturbation are the structure of a compiled graph: one graph for each
    set. Errors: `InvalidInput` for a layer without self-attention.
    """
    kinds: dict[str, dict[str, list[float]]] = {}
    for row, perturbation in enumerate(perturbations):
        if perturbation is not None:
            for site in self_attentions_in(config, perturbation.layers):
                values = kinds.setdefault(site, {}).setdefault(perturbation.kind, [0.0] * len(perturbations))
                values[row] = 1.0 if perturbation.sigma is None else perturbation.sigma

    def rows(kind: dict[str, list[float]]) -> PerturbedRows:
        identity, blur = kind.get("identity"), kind.get("blurred")
        return PerturbedRows(
            identity=None if identity is None else torch.tensor(identity, device=device) > 0,
            blur=None if blur is None else torch.tensor(blur, device=device),
        )

    # In the order of execution: batches with the same layers give the same graph, whoever comes first.
    return {site: rows(kinds[site]) for site in config.self_attentions() if site in kinds} or None


def check_perturbed(config: UNetConfig, rows: int, perturbed: Mapping[str, PerturbedRows]) -> None:
    """Checks names and row counts. Errors: `InvalidInput`."""
    sites = config.self_attentions()
    for site, change in perturbed.items():
        name = f"ports.self_attention[{site!r}]"
        if site not in sites:
            raise InvalidInput(name, "given", f"one of the {len(sites)} names that `UNetConfig.self_attentions` lists")
        for field, tensor in (("identity", change.identity), ("blur", change.blur)):
            if tensor is not None and tensor.shape != (rows,):
                raise InvalidInput(f"{name}.{field}", list(tensor.shape), f"one value per row, [{rows}]")
