"""A U-Net's forward on stand-ins. Names and order are those of `unet/`, so that the same things live at the same
time."""

from collections.abc import Collection

from undertow.memory.ledger import Array
from undertow.memory.operations import Operations
from undertow.memory.unet_layers import Stages, norm_silu
from undertow.unet.config import CrossAttention, SelfAttention, UNetConfig


def running_places(config: UNetConfig) -> list[int]:
    """The skip connections at which a T2I-Adapter adds to the activations: `t2i.injections`."""
    found, stored, last = list[int](), 0, len(config.levels) - 1
    for index, level in enumerate(config.levels):
        stored += level.resnets
        found.append(stored + (index < last and level.attention is None))
        stored += index < last
    return found


def encode(stages: Stages, latents: Array, *, added: Collection[int] = ()) -> tuple[Array, list[Array]]:
    """`Encoder.encode`: what leaves the lowest level, and the skip connections. added: of these, those at which a hint
    or a T2I-Adapter adds to the activations."""
    config, ops, at = stages.config, stages.ops, stages.ledger.at
    with at("conv_in", "convolutions", 0):
        hidden = ops.conv(latents, config.levels[0].channels)
        hidden = _added_at(ops, hidden, 0, added)
    skips = [_stored(hidden)]
    for index, level in enumerate(config.levels):
        block_input = hidden
        for layer, depth in enumerate(level.encoder_depths()):
            hidden = _layer(
                stages, f"down_blocks.{index}", layer, index, hidden, level.channels, level.attention, depth
            )
            hidden = _added_at(ops, hidden, len(skips), added)
            skips.append(_stored(hidden))
        if index < len(config.levels) - 1:
            with at(f"down_blocks.{index}.downsamplers.0", "convolutions", index + 1):
                hidden = ops.conv(hidden, level.channels, stride=2)
                hidden = _added_at(ops, hidden, len(skips), added)
            skips.append(_stored(hidden))
        del block_input
    return hidden, skips


def _added_at(ops: Operations, hidden: Array, place: int, added: Collection[int]) -> Array:
    return ops.elementwise("add", hidden) if place in added else hidden


def middle(stages: Stages, hidden: Array) -> Array:
    """`MiddleStage.forward`."""
    config = stages.config
    level, channels = len(config.levels) - 1, config.levels[-1].channels
    block_input = hidden
    depths = (*config.middle.depths(), 0)
    for layer, depth in zip(range(config.middle.resnets), depths, strict=True):
        kind = config.middle.attention if layer < config.middle.resnets - 1 else None
        hidden = _layer(stages, "mid_block", layer, level, hidden, channels, kind, depth)
    del block_input
    return hidden


def decode(stages: Stages, hidden: Array, skips: list[Array]) -> Array:
    """`UNet._decode`, which empties `skips`."""
    config, ops, at = stages.config, stages.ops, stages.ledger.at
    for index in range(len(config.levels)):
        here = len(config.levels) - 1 - index
        hidden = _up_block(stages, index, here, hidden, skips)
    with at("conv_out", "convolutions", 0):
        normed = norm_silu(ops, hidden, config.norm_groups)
        return ops.conv(normed, config.out_channels)


def _up_block(stages: Stages, index: int, here: int, block_input: Array, skips: list[Array]) -> Array:
    config, ops, at = stages.config, stages.ops, stages.ledger.at
    level, name, hidden = config.levels[here], f"up_blocks.{index}", block_input
    for layer, depth in enumerate(level.decoder_depths()):
        skip = skips.pop()
        rows, channels, height, width = hidden.shape
        with at(f"{name}.resnets.{layer}", "convolutions", here):
            joined = (rows, channels + skip.shape[1], height, width)
            hidden = ops.elementwise("cat", hidden, skip, shape=joined)
        del skip
        if stages.recomputes(name):
            hidden = _layer(stages, name, layer, here, hidden, level.channels, level.attention, depth)
        else:
            hidden = _resnet(stages, name, layer, here, hidden, level.channels)
            hidden = _attended(stages, name, layer, here, hidden, level.attention, depth)
    if here:
        rows, channels = hidden.shape[:2]
        height, width = skips[-1].shape[2:]
        with at(f"{name}.upsamplers.0", "convolutions", here - 1):
            hidden = _upsample(ops, hidden, (rows, channels, height, width))
    return hidden


def _upsample(ops: Operations, x: Array, shape: tuple[int, int, int, int]) -> Array:
    larger = ops.elementwise("interpolate", x, shape=shape)
    return ops.conv(larger, shape[1])


def _layer(
    stages: Stages,
    block: str,
    layer: int,
    level: int,
    hidden: Array,
    channels: int,
    kind: CrossAttention | SelfAttention | None,
    depth: int,
) -> Array:
    """`Stage.layer`: a ResBlock, and the attention after it, during which the ResBlock's input lives on."""
    saved = stages.ops.saved
    kept = 0 if saved is None else len(saved.arrays)
    made = _resnet(stages, block, layer, level, hidden, channels)
    made = _attended(stages, block, layer, level, made, kind, depth)
    if saved is not None and stages.recomputes(block):
        saved.arrays[kept:] = [hidden]
    return made


def _resnet(stages: Stages, block: str, layer: int, level: int, hidden: Array, channels: int) -> Array:
    with stages.ledger.at(f"{block}.resnets.{layer}", "convolutions", level):
        return stages.res_block(hidden, channels, stages.embedding, stages.config.norm_groups)


def _attended(
    stages: Stages,
    block: str,
    layer: int,
    level: int,
    hidden: Array,
    kind: CrossAttention | SelfAttention | None,
    depth: int,
) -> Array:
    if kind is None:
        return hidden
    with stages.ledger.at(f"{block}.attentions.{layer}", "transformer", level):
        return stages.attend(hidden, kind, depth)


def _stored(hidden: Array) -> Array:
    hidden.buffer.becomes("skips")
    return hidden


def predict(stages: Stages, latents: Array, *, controlled: bool = False, running: bool = False) -> Array:
    """`UNet.predict`. controlled: whether ControlNets add to the skip connections. running: whether T2I-Adapters add to
    activations on the way."""
    hidden, skips = encode(stages, latents, added=running_places(stages.config) if running else ())
    hidden = middle(stages, hidden)
    if controlled:
        with stages.ledger.at("residuals", "skips"):
            lowest, hidden = hidden, stages.ops.elementwise("add", hidden)
            del lowest
        skips = _with_residuals(stages, skips)
    return decode(stages, hidden, skips)


def _with_residuals(stages: Stages, skips: list[Array]) -> list[Array]:
    with stages.ledger.at("residuals", "skips"):
        return [stages.ops.elementwise("add", skip) for skip in skips]


def residuals(stages: Stages, latents: Array) -> list[Array]:
    """`ControlNet.predict`, which adds the embedded hint to what `conv_in` makes."""
    hidden, skips = encode(stages, latents, added=(0,))
    hidden = middle(stages, hidden)
    with stages.ledger.at("controlnet_mid_block", "residuals"):
        found = [stages.ops.plain_conv(hidden, hidden.shape[1], 1)]
    with stages.ledger.at("controlnet_down_blocks", "residuals"):
        return found + [stages.ops.plain_conv(skip, skip.shape[1], 1) for skip in skips]
