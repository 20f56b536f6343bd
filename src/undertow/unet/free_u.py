"""FreeU (arXiv:2309.11497): its settings in both conventions, and the factors that each decoder layer receives."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from undertow.diffusion.guidance.branches import require_word
from undertow.errors import InvalidInput
from undertow.nn.free_u import FreeUFactors
from undertow.unet.config import UNetConfig

Keyed = Literal["channels", "index"]
Version = Literal[1, 2]


@dataclass(frozen=True, kw_only=True)
class FreeU:
    """Factors b1, b2 on the backbone and s1, s2 on the low frequencies of the skips, in two parts of the decoder.

    keyed: which parts. "channels", as the authors' code and ComfyUI: where the backbone is four times (b1, s1) and
    twice (b2, s2) as wide as the first level. "index", as diffusers: the first and the second stage of the decoder.
    They differ for Stable Diffusion 1, whose two lowest stages are equally wide. version: 2 scales the backbone where
    it is active. Defaults: the authors' for Stable Diffusion 1.5.
    """

    b1: float = 1.5
    b2: float = 1.6
    s1: float = 0.9
    s2: float = 0.2
    keyed: Keyed = "channels"
    version: Version = 1

    def __post_init__(self):
        require_word("FreeU's keyed", self.keyed, Keyed)
        require_word("FreeU's version", self.version, Version)
        for name in ("b1", "b2", "s1", "s2"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InvalidInput(f"FreeU's {name}", value, "a finite number, at least 0", "1 changes nothing")


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
        parts = dict(_parts(config, setting.keyed))
        if not parts:
            raise InvalidInput("FreeU", f"keyed by {setting.keyed}", "decoder layers of this width", "key it by index")
        for name, part in parts.items():
            factors = (setting.b1, setting.s1) if part == 0 else (setting.b2, setting.s2)
            layers.setdefault(name, [(1.0, 1.0, False)] * len(settings))[row] = (*factors, setting.version == 2)

    def rows(values: list[tuple[float, float, bool]]) -> FreeUFactors:
        backbone, skip, structural = (torch.tensor(column, device=device) for column in zip(*values, strict=True))
        return FreeUFactors(backbone=backbone, skip=skip, structural=structural)

    return {name: rows(layers[name]) for name, _ in _decoder(config) if name in layers} or None


def check_free_u(config: UNetConfig, rows: int, free_u: Mapping[str, FreeUFactors]) -> None:
    """Checks names and row counts. Errors: `InvalidInput`."""
    names = [name for name, _ in _decoder(config)]
    for layer, factors in free_u.items():
        if layer not in names:
            raise InvalidInput(f"ports.free_u[{layer!r}]", "given", f"a decoder layer, {names[0]} to {names[-1]}")
        for field in ("backbone", "skip", "structural"):
            shape = getattr(factors, field).shape
            if shape != (rows,):
                raise InvalidInput(f"ports.free_u[{layer!r}].{field}", list(shape), f"one value per row, [{rows}]")


def _parts(config: UNetConfig, keyed: Keyed) -> Iterator[tuple[str, int]]:
    """Decoder layers that have factors, and which: 0 for b1 and s1, 1 for b2 and s2."""
    first = config.levels[0].channels
    widths = {4 * first: 0, 2 * first: 1}
    for name, width in _decoder(config):
        part = widths.get(width) if keyed == "channels" else int(name.split(".")[1])
        if part is not None and part < 2:
            yield name, part


def _decoder(config: UNetConfig) -> Iterator[tuple[str, int]]:
    """Every layer of the decoder, with the width of the hidden activations that it receives, in the order of
    execution."""
    width = config.levels[-1].channels
    for stage, level in enumerate(config.levels[::-1]):
        for layer in range(level.resnets + 1):
            yield f"up_blocks.{stage}.resnets.{layer}", width
            width = level.channels
