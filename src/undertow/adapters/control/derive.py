"""A ControlNet's architecture from its tensors; what shapes do not tell (heads, conventions) is the U-Net's."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from undertow.adapters.control.config import ControlNetConfig
from undertow.errors import ConfigError, UnknownCheckpoint
from undertow.unet.config import CrossAttention, Level, Middle, UNetConfig

Shapes = Mapping[str, tuple[int, ...]]

HEAD_DIM = 64
EMBEDDING = "controlnet_cond_embedding"
POOLED = "shuffle"
"""The ControlNet 1.1 whose residuals count by their mean; nothing but its name says so."""


def derive_control_config(shapes: Shapes, base: UNetConfig, path: Path) -> ControlNetConfig:
    """The config of tensors under diffusers' names, which fit `base` (`fitting.require_fit`).

    Errors: `UnknownCheckpoint` for an encoder that no config describes.
    """
    try:
        return ControlNetConfig(
            unet=replace(
                base,
                levels=tuple(_level(shapes, index, level) for index, level in enumerate(base.levels)),
                middle=_middle(shapes, base),
                in_channels=shapes["conv_in.weight"][1],
                guidance_dim=None,
            ),
            hint_channels=hint_channels(shapes),
            hint_in=hint_in(shapes),
            global_pool=POOLED in path.stem.lower().replace("-", "_").split("_"),
        )
    except (ConfigError, KeyError, IndexError) as err:
        raise UnknownCheckpoint(
            path, f"a ControlNet of an unknown architecture ({err})", "give diffusers' folder"
        ) from err


def hint_channels(shapes: Shapes) -> tuple[int, ...]:
    """The widths of the hint embedder, as `ControlNetConfig` has them."""
    channels = [shapes[f"{EMBEDDING}.conv_in.weight"][0]]
    while (name := f"{EMBEDDING}.blocks.{2 * len(channels) - 1}.weight") in shapes:
        channels.append(shapes[name][0])
    return tuple(channels)


def hint_in(shapes: Shapes) -> int:
    """The channels of the hint."""
    return shapes[f"{EMBEDDING}.conv_in.weight"][1]


def _level(shapes: Shapes, index: int, base: Level) -> Level:
    depths = tuple(_depth(shapes, f"down_blocks.{index}.attentions.{layer}") for layer in range(base.resnets))
    if not any(depths):
        return replace(base, attention=None)
    if isinstance(base.attention, CrossAttention):
        if depths == base.encoder_depths():
            return base
        heads = base.attention.heads
    else:
        heads = base.channels // HEAD_DIM
    even = len(set(depths)) == 1
    # A decoder needs depths of its own where the encoder's are unequal; a ControlNet has none.
    decoder = None if even else (1,) * (base.resnets + 1)
    attention = CrossAttention(heads=heads, depth=depths[0] if even else depths, decoder_depth=decoder)
    return replace(base, attention=attention)


def _middle(shapes: Shapes, base: UNetConfig) -> Middle:
    resnets = 0
    while f"mid_block.resnets.{resnets}.conv1.weight" in shapes:
        resnets += 1
    # SDXL's small ControlNet keeps the projections of a transformer without blocks.
    if "mid_block.attentions.0.norm.weight" not in shapes:
        return Middle(resnets=resnets)
    own = base.middle.attention
    heads = own.heads if isinstance(own, CrossAttention) else base.levels[-1].channels // HEAD_DIM
    depth = _depth(shapes, "mid_block.attentions.0")
    return Middle(attention=CrossAttention(heads=heads, depth=depth), resnets=resnets)


def _depth(shapes: Shapes, module: str) -> int:
    count = 0
    while f"{module}.transformer_blocks.{count}.norm1.weight" in shapes:
        count += 1
    return count
