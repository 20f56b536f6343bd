"""Translates the perturbations that guidance asks for, one per row, into the inputs of each self-attention."""

from collections.abc import Mapping, Sequence

import torch

from undertow.diffusion.guidance import Perturbation
from undertow.errors import InvalidInput
from undertow.nn.perturbation import PerturbedRows
from undertow.unet.config import UNetConfig


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


def self_attentions_in(config: UNetConfig, layers: Sequence[str]) -> list[str]:
    """The named self-attentions, and those inside the named modules. Errors: `InvalidInput` for a name without any."""
    sites = config.self_attentions()
    found = []
    for layer in layers:
        inside = [site for site in sites if site == layer or site.startswith(f"{layer}.")]
        if not inside:
            blocks = list(dict.fromkeys(site.split(".attentions.")[0] for site in sites))
            offered = f"a part of {', '.join(blocks)}" if blocks else "nothing: this network has no self-attention"
            raise InvalidInput(
                "layers", repr(layer), f"{offered}, with self-attention", "`UNetConfig.self_attentions` lists all"
            )
        found += inside
    return found


def first_self_attention(config: UNetConfig, layer: str) -> str:
    """The first self-attention in the named module, which may be that module itself. Errors: `InvalidInput` for a name
    without any."""
    return self_attentions_in(config, (layer,))[0]


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
