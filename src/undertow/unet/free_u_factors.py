"""The factors of FreeU (`unet.free_u`) that each decoder layer receives."""

from collections.abc import Mapping, Sequence

import torch

from undertow.errors import InvalidInput
from undertow.nn.free_u import FreeUFactors
from undertow.unet.config import UNetConfig
from undertow.unet.free_u import FreeU, decoder_layers, scaled_layers


def free_u_factors(
    config: UNetConfig, settings: Sequence[FreeU | None], device: torch.device | str | None = None
) -> Mapping[str, FreeUFactors] | None:
    """`Ports.free_u` for a batch with these settings (`None` for a row without one); `None` when no row has any.

    Errors: `InvalidInput` when the network has no layer that a setting applies to.
    """
    layers: dict[str, list[tuple[float, float, bool]]] = {}
    for row, setting in enumerate(settings):
        if setting is None:
            continue
        for name, part in scaled_layers(config, setting).items():
            factors = (setting.b1, setting.s1) if part == 0 else (setting.b2, setting.s2)
            layers.setdefault(name, [(1.0, 1.0, False)] * len(settings))[row] = (*factors, setting.version == 2)

    def rows(values: list[tuple[float, float, bool]]) -> FreeUFactors:
        backbone, skip, structural = (torch.tensor(column, device=device) for column in zip(*values, strict=True))
        return FreeUFactors(backbone=backbone, skip=skip, structural=structural)

    return {name: rows(layers[name]) for name, _ in decoder_layers(config) if name in layers} or None


def check_free_u(config: UNetConfig, rows: int, free_u: Mapping[str, FreeUFactors]) -> None:
    """Checks names and row counts. Errors: `InvalidInput`."""
    names = [name for name, _ in decoder_layers(config)]
    for layer, factors in free_u.items():
        if layer not in names:
            raise InvalidInput(f"ports.free_u[{layer!r}]", "given", f"a decoder layer, {names[0]} to {names[-1]}")
        for field in ("backbone", "skip", "structural"):
            shape = getattr(factors, field).shape
            if shape != (rows,):
                raise InvalidInput(f"ports.free_u[{layer!r}].{field}", list(shape), f"one value per row, [{rows}]")
