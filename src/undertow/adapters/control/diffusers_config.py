"""The `config.json` of diffusers' ControlNetModel: the one place that knows its fields.

Most are those of UNet2DConditionModel, read by `unet.diffusers_config`; the rest describe the hint.
"""

from collections.abc import Mapping
from typing import Any

from undertow.adapters.control.config import ControlNetConfig
from undertow.errors import ConfigError
from undertow.unet.diffusers_config import CONDITIONAL, config_from_diffusers, config_to_diffusers

CONTROLNET = "ControlNetModel"

_DEFAULTS: Mapping[str, Any] = {
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 1280,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
}
"""What the absence of a field means in ControlNetModel, where that differs from UNet2DConditionModel."""

_OF_THE_HINT = (
    "conditioning_channels",
    "conditioning_embedding_out_channels",
    "controlnet_conditioning_channel_order",
    "global_pool_conditions",
)
_NOT_THERE = ("out_channels", "up_block_types", "sample_size", "dropout", "time_cond_proj_dim", "time_embedding_dim")
"""What a ControlNetModel does not have: a decoder, dropout, a guidance embedding, another width of time."""


def control_config_from_diffusers(json: Mapping[str, Any]) -> ControlNetConfig:
    """The architecture that a ControlNetModel's config describes. Errors: `ConfigError` names the field."""
    hint_in = json.get("conditioning_channels", 3)
    channels = json.get("conditioning_embedding_out_channels", [16, 32, 96, 256])
    order = json.get("controlnet_conditioning_channel_order", "rgb")
    pool = json.get("global_pool_conditions", False)
    if not isinstance(hint_in, int) or isinstance(hint_in, bool):
        raise ConfigError("conditioning_channels", hint_in, "must be a whole number")
    if not isinstance(channels, list | tuple) or not all(isinstance(width, int) for width in channels):
        raise ConfigError("conditioning_embedding_out_channels", channels, "must be a list of whole numbers")
    if order not in ("rgb", "bgr"):
        raise ConfigError("controlnet_conditioning_channel_order", order, "must be 'rgb' or 'bgr'")
    if not isinstance(pool, bool):
        raise ConfigError("global_pool_conditions", pool, "must be true or false")
    unet = {**_DEFAULTS, **{name: value for name, value in json.items() if name not in _OF_THE_HINT}}
    down = unet["down_block_types"]
    if not isinstance(down, list | tuple) or not all(isinstance(kind, str) for kind in down):
        raise ConfigError("down_block_types", down, "must be a list of names")
    unet |= {
        "_class_name": CONDITIONAL,
        "up_block_types": [kind.replace("Down", "Up") for kind in down[::-1]],
        "time_cond_proj_dim": None,
    }
    depths = unet.get("transformer_layers_per_block")
    if isinstance(depths, list | tuple) and any(isinstance(depth, list | tuple) for depth in depths):
        unet.setdefault("reverse_transformer_layers_per_block", 1)  # a decoder that it does not have
    return ControlNetConfig(
        unet=config_from_diffusers(unet),
        hint_channels=tuple(channels),
        hint_in=hint_in,
        global_pool=pool,
        bgr=order == "bgr",
    )


def control_config_to_diffusers(config: ControlNetConfig) -> dict[str, Any]:
    """The config as `config.json`. A width of time that is not 4 times the first level's is written under the U-Net's
    name for it; diffusers ignores it with a warning, and cannot load such a network. Errors: `ConfigError` for networks
    that ControlNetModel cannot express."""
    unet = config.unet
    if unet.context_dim is None:
        raise ConfigError("unet.context_dim", None, "diffusers has ControlNets of networks with text only")
    fields = config_to_diffusers(unet)
    if unet.time_dim is None or unet.time_dim == 4 * unet.levels[0].channels:
        fields.pop("time_embedding_dim")
    dropped = set(_NOT_THERE) - {"time_embedding_dim"}
    return {
        **{name: value for name, value in fields.items() if name not in dropped},
        "_class_name": CONTROLNET,
        "conditioning_channels": config.hint_in,
        "conditioning_embedding_out_channels": list(config.hint_channels),
        "controlnet_conditioning_channel_order": "bgr" if config.bgr else "rgb",
        "global_pool_conditions": config.global_pool,
    }
