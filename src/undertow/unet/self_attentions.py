"""The self-attentions of a network, by the names of the modules that they are in. Imports no torch."""

from collections.abc import Sequence

from undertow.errors import InvalidInput
from undertow.unet.config import UNetConfig


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
