"""FreeU (arXiv:2309.11497): its settings in both conventions, and the decoder layers that they are for. Imports no
torch."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from undertow.errors import InvalidInput
from undertow.guidance_options.rules import require_word
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


def scaled_layers(config: UNetConfig, setting: FreeU) -> dict[str, int]:
    """Decoder layers that have factors, and which: 0 for b1 and s1, 1 for b2 and s2. Errors: `InvalidInput` when the
    network has no layer that the setting applies to."""
    found = dict(_parts(config, setting.keyed))
    if not found:
        raise InvalidInput("FreeU", f"keyed by {setting.keyed}", "decoder layers of this width", "key it by index")
    return found


def _parts(config: UNetConfig, keyed: Keyed) -> Iterator[tuple[str, int]]:
    """Decoder layers with their parts, the first and the second."""
    first = config.levels[0].channels
    widths = {4 * first: 0, 2 * first: 1}
    for name, width in decoder_layers(config):
        part = widths.get(width) if keyed == "channels" else int(name.split(".")[1])
        if part is not None and part < 2:
            yield name, part


def decoder_layers(config: UNetConfig) -> Iterator[tuple[str, int]]:
    """Every layer of the decoder, with the width of the hidden activations that it receives, in the order of
    execution."""
    width = config.levels[-1].channels
    for stage, level in enumerate(config.levels[::-1]):
        for layer in range(level.resnets + 1):
            yield f"up_blocks.{stage}.resnets.{layer}", width
            width = level.channels
