"""What a ControlNet's tensors tell: its architecture, for which U-Net it was made, and whether it fits one. What shapes
do not tell (heads, conventions) is the U-Net's."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from undertow.adapters.control.config import ControlNetConfig
from undertow.adapters.lora.lora_refusals import WIDTHS
from undertow.checkpoints.identify.families import describe_family
from undertow.errors import AdapterMismatch, ConfigError, UnknownCheckpoint
from undertow.unet.config import CrossAttention, Level, Middle, TextTime, UNetConfig

Shapes = Mapping[str, tuple[int, ...]]

HEAD_DIM = 64
EMBEDDING = "controlnet_cond_embedding"
POOLED = "shuffle"
"""The ControlNet 1.1 whose residuals count by their mean; nothing but its name says so."""


def derive_control_config(shapes: Shapes, base: UNetConfig, path: Path) -> ControlNetConfig:
    """The config of a ControlNet whose tensors, under diffusers' names, fit `base` (see `require_fit`).

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


_TEXT = re.compile(r".*\.attn2\.to_[kv]\.weight")
_XL_POOLED = 2816
"""Inputs of SDXL's added embedding: of its ControlNets without attention, the one sign of the family."""


def require_fit(path: Path, shapes: Shapes, base: UNetConfig, *, kind: str = "ControlNet") -> None:
    """Checks that an encoder, given its tensors under diffusers' names, is as wide and as deep as that of `base` and
    reads text of the same width. Attention may be missing. Errors: `AdapterMismatch` names the model that it was made
    for."""
    wrong = list(_differences(shapes, base))
    if wrong:
        made_for, own = made_for_model(shapes), describe_family(base)[2]
        raise AdapterMismatch(
            path,
            f"a {kind} for {made_for}, and the model is {own} ({'; '.join(wrong)})",
            f"use one that was made for {own}, or load {made_for}",
            made_for=made_for,
        )


def made_for_model(shapes: Shapes) -> str:
    """Name of the model that a ControlNet was made for, from the width of its text, else from its levels."""
    text = text_width(shapes)
    if text is None and size(shapes, "add_embedding.linear_1.weight", 1) == _XL_POOLED:
        return WIDTHS[2048]
    if text is not None and text in WIDTHS:
        return WIDTHS[text]
    return f"a model of {_listed(level_widths(shapes))} channels" + (
        "" if text is None else f" whose text is {text} wide"
    )


def text_width(shapes: Shapes) -> int | None:
    """Width of the text tokens that its cross-attentions read; `None` without cross-attention."""
    return next((size(shapes, name, 1) for name in shapes if _TEXT.fullmatch(name)), None)


def level_widths(shapes: Shapes) -> list[int]:
    """Channels of every level of the encoder."""
    widths = []
    while (name := f"down_blocks.{len(widths)}.resnets.0.conv1.weight") in shapes:
        widths.append(size(shapes, name, 0))
    return widths


def size(shapes: Shapes, name: str, axis: int) -> int:
    """The size of a tensor along one axis; 0 if there is no such tensor or axis."""
    shape = shapes.get(name, ())
    return shape[axis] if axis < len(shape) else 0


def _differences(shapes: Shapes, base: UNetConfig) -> Iterator[str]:
    text, widths = text_width(shapes), level_widths(shapes)
    if text is not None and text != base.context_dim:
        yield f"text {text} wide instead of {base.context_dim}"
    if widths != base.block_out_channels:
        yield f"levels of {_listed(widths)} channels instead of {_listed(base.block_out_channels)}"
    for index, level in enumerate(base.levels[: len(widths)]):
        found = sum(f"down_blocks.{index}.resnets.{layer}.conv1.weight" in shapes for layer in range(level.resnets + 1))
        if found != level.resnets:
            yield f"another number of ResBlocks in level {index}"
    added = size(shapes, "add_embedding.linear_1.weight", 1)
    match base.added:
        case TextTime(pooled_dim=pooled, ids=ids, sinusoid_dim=dim):
            wanted = pooled + ids * dim
        case _:
            wanted = 0
    if added != wanted:
        yield f"an added embedding of {added or 'no'} inputs instead of {wanted or 'none'}"
    latents = size(shapes, "conv_in.weight", 1)
    if latents > base.in_channels:
        yield f"{latents} channels of latents instead of {base.in_channels}"


def _listed(widths: list[int]) -> str:
    return "/".join(map(str, widths)) or "no"
