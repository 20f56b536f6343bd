"""The autoencoder: LDM names (CompVis `model.py`) and diffusers' AutoencoderKL.

Source: https://github.com/CompVis/stable-diffusion/blob/main/ldm/modules/diffusionmodules/model.py. The decoder's
levels count from the lowest resolution in diffusers and from the highest in LDM.
"""

import re
from collections.abc import Collection, Iterator

from undertow.checkpoints.keymap.mapping import TensorMapping
from undertow.checkpoints.keymap.renaming import Pair, Renaming, same

RESNET = Renaming([*same("norm1", "conv1", "norm2", "conv2"), Pair("nin_shortcut", "conv_shortcut")])

ATTENTION = Renaming(
    Pair(ldm, ours)
    for ldm, ours in {
        "norm": "group_norm",
        "q": "to_q",
        "k": "to_k",
        "v": "to_v",
        "proj_out": "to_out.0",
    }.items()
)

OLD_ATTENTION = Renaming(
    Pair(f"{part}.mid_block.attentions.0.{old}", f"{part}.mid_block.attentions.0.{new}")
    for part in ("encoder", "decoder")
    for old, new in {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}.items()
)
"""Names of the attention's layers in diffusers before 0.17."""

_LINEAR = re.compile(r"(encoder|decoder)\.mid_block\.attentions\.0\.(to_q|to_k|to_v|to_out\.0)\.weight")


def vae_levels(names: Collection[str]) -> int:
    """The number of levels, from LDM names."""
    names = set(names)
    count = 0
    while any(f"{side}.{count}.block.0.norm1.weight" in names for side in ("encoder.down", "decoder.up")):
        count += 1
    return count


def vae_renaming(levels: int, resnets: int = 2) -> Renaming:
    """The table for `levels` levels, each with `resnets` ResBlocks in the encoder and one more in the decoder."""
    return Renaming([*_half("encoder"), *_half("decoder"), *_encoder(levels, resnets), *_decoder(levels, resnets)])


def vae_mapping(foreign: str, ours: str) -> TensorMapping:
    """How one tensor is mapped: the attention's projections are 1x1 convolutions in LDM, linear layers in diffusers."""
    return TensorMapping(foreign, (ours,), convolution=_LINEAR.fullmatch(ours) is not None)


def _half(half: str) -> Iterator[Pair]:
    yield from same("quant_conv", "post_quant_conv", f"{half}.conv_in", f"{half}.conv_out")
    yield Pair(f"{half}.norm_out", f"{half}.conv_norm_out")
    yield Pair(f"{half}.mid.block_1", f"{half}.mid_block.resnets.0", RESNET)
    yield Pair(f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0", ATTENTION)
    yield Pair(f"{half}.mid.block_2", f"{half}.mid_block.resnets.1", RESNET)


def _encoder(levels: int, resnets: int) -> Iterator[Pair]:
    for level in range(levels):
        for layer in range(resnets):
            yield Pair(f"encoder.down.{level}.block.{layer}", f"encoder.down_blocks.{level}.resnets.{layer}", RESNET)
        yield Pair(f"encoder.down.{level}.downsample.conv", f"encoder.down_blocks.{level}.downsamplers.0.conv")


def _decoder(levels: int, resnets: int) -> Iterator[Pair]:
    for level in range(levels):
        ours = f"decoder.up_blocks.{levels - 1 - level}"
        for layer in range(resnets + 1):
            yield Pair(f"decoder.up.{level}.block.{layer}", f"{ours}.resnets.{layer}", RESNET)
        yield Pair(f"decoder.up.{level}.upsample.conv", f"{ours}.upsamplers.0.conv")
