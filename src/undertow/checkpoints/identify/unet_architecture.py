"""Derives the architecture of a U-Net from the names and shapes of its tensors.

Shapes do not show the number of heads, for which the families (CompVis, Stability) have a rule: networks that project
by convolutions have 8 heads, those that project by linear layers have heads of width 64.
"""

import re
from collections.abc import Mapping

from undertow.errors import ConfigError
from undertow.unet.config import CrossAttention, Level, Middle, TextTime, UNetConfig

Shapes = Mapping[str, tuple[int, ...]]

SD1_HEADS = 8
HEAD_DIM = 64
POOLED_DIM = 1280
SINUSOID_DIM = 256


def derive_config(shapes: Shapes) -> UNetConfig:
    """The config of a text-conditioned U-Net. shapes: by diffusers' names.

    sample_size and upcast_attention keep their defaults. Errors: `ConfigError` for another kind of network.
    """
    count = _count(shapes, "down_blocks.{}.resnets.0.conv1.weight")
    if count == 0:
        raise ConfigError("down_blocks", 0, "a U-Net has at least one level")
    linear = _is_linear(shapes)
    first = shapes["conv_in.weight"][0]
    time_dim, sinusoid_dim = _shape(shapes, "time_embedding.linear_1.weight", 2)
    return UNetConfig(
        levels=tuple(_level(shapes, level, count, linear) for level in range(count)),
        middle=_middle(shapes, linear),
        in_channels=_shape(shapes, "conv_in.weight", 4)[1],
        out_channels=_shape(shapes, "conv_out.weight", 4)[0],
        context_dim=_context_dim(shapes),
        linear_projection=linear,
        added=_added(shapes),
        guidance_dim=shapes.get("time_embedding.cond_proj.weight", (0, None))[1],
        sinusoid_dim=None if sinusoid_dim == first else sinusoid_dim,
        time_dim=None if time_dim == 4 * first else time_dim,
    )


def _level(shapes: Shapes, level: int, count: int, linear: bool) -> Level:
    down, up = f"down_blocks.{level}", f"up_blocks.{count - 1 - level}"
    resnets = _count(shapes, down + ".resnets.{}.conv1.weight")
    channels = _shape(shapes, f"{down}.resnets.0.conv2.weight", 4)[0]
    encoder = tuple(_depth(shapes, f"{down}.attentions.{layer}") for layer in range(resnets))
    decoder = tuple(_depth(shapes, f"{up}.attentions.{layer}") for layer in range(resnets + 1))
    if not any(encoder + decoder):
        return Level(channels=channels, resnets=resnets)
    even = len(set(encoder)) == 1
    attention = CrossAttention(
        heads=_heads(channels, linear),
        depth=encoder[0] if even else encoder,
        decoder_depth=None if even and set(decoder) == set(encoder) else decoder,
    )
    return Level(channels=channels, resnets=resnets, attention=attention)


def _middle(shapes: Shapes, linear: bool) -> Middle:
    resnets = _count(shapes, "mid_block.resnets.{}.conv1.weight")
    depth = _depth(shapes, "mid_block.attentions.0")
    if depth == 0:
        return Middle(resnets=resnets)
    channels = _shape(shapes, "mid_block.resnets.0.conv2.weight", 4)[0]
    return Middle(attention=CrossAttention(heads=_heads(channels, linear), depth=depth), resnets=resnets)


def _added(shapes: Shapes) -> TextTime | None:
    if "add_embedding.linear_1.weight" not in shapes:
        return None
    width = _shape(shapes, "add_embedding.linear_1.weight", 2)[1]
    ids, rest = divmod(width - POOLED_DIM, SINUSOID_DIM)
    if rest or ids < 1:
        raise ConfigError("add_embedding.linear_1", width, f"is not {POOLED_DIM} plus a multiple of {SINUSOID_DIM}")
    return TextTime(pooled_dim=POOLED_DIM, ids=ids, sinusoid_dim=SINUSOID_DIM)


def _context_dim(shapes: Shapes) -> int | None:
    widths = {shape[1] for name, shape in shapes.items() if re.fullmatch(r".*\.attn2\.to_k\.weight", name)}
    if len(widths) > 1:
        raise ConfigError("attn2.to_k", sorted(widths), "must have one width of text for all levels")
    return next(iter(widths), None)


def _is_linear(shapes: Shapes) -> bool:
    return any(len(shape) == 2 for name, shape in shapes.items() if re.fullmatch(r".*\.proj_in\.weight", name))


def _heads(channels: int, linear: bool) -> int:
    if not linear:
        return SD1_HEADS
    if channels % HEAD_DIM:
        raise ConfigError("heads", channels, f"channels of a level must be a multiple of the head width {HEAD_DIM}")
    return channels // HEAD_DIM


def _depth(shapes: Shapes, module: str) -> int:
    return _count(shapes, module + ".transformer_blocks.{}.norm1.weight")


def _count(shapes: Shapes, pattern: str) -> int:
    number = 0
    while pattern.format(number) in shapes:
        number += 1
    return number


def _shape(shapes: Shapes, name: str, rank: int) -> tuple[int, ...]:
    shape = shapes.get(name)
    if shape is None or len(shape) != rank:
        raise ConfigError(name, shape, f"must be a tensor of rank {rank}")
    return shape
