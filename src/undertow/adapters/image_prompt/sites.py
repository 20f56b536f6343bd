"""Which cross-attention of a U-Net an IP-Adapter's number N means, and which ones carry style and layout."""

from collections.abc import Mapping

from undertow.unet.config import UNetConfig

_STAGES = ("down_blocks", "up_blocks", "mid_block")

STYLE: Mapping[str, float] = {"up_blocks.0.attentions.1.*": 1.0, "*": 0.0}
"""`Adapter.blocks` with which an SDXL adapter passes on a picture's style alone (InstantStyle, arXiv:2404.02733)."""

LAYOUT: Mapping[str, float] = {"down_blocks.2.attentions.1.*": 1.0, "*": 0.0}
"""The same for where things are in a picture."""

STYLE_AND_LAYOUT: Mapping[str, float] = {
    "up_blocks.0.attentions.1.*": 1.0,
    "down_blocks.2.attentions.1.*": 1.0,
    "*": 0.0,
}


def site_numbers(config: UNetConfig) -> dict[int, str]:
    """Name of the cross-attention behind every N of `ip_adapter.N.to_k_ip.weight`.

    N counts diffusers' attention processors, which stand in the order down, up, mid, unlike the order of execution;
    each transformer block has two, self-attention (even) and cross-attention (odd).
    """
    execution = list(config.cross_attentions())
    ordered = [site for stage in _STAGES for site in execution if site.startswith(stage)]
    return {2 * place + 1: site for place, site in enumerate(ordered)}
