"""The U-Net: LDM and SGM names (CompVis `openaimodel.py`) and diffusers'.

Sources: https://github.com/CompVis/stable-diffusion/blob/main/ldm/modules/diffusionmodules/openaimodel.py (the order in
which `input_blocks`, `middle_block` and `output_blocks` are built) against diffusers' UNet2DConditionModel.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from undertow.checkpoints.keymap.renaming import Pair, Renaming, same
from undertow.unet.config import UNetConfig


@dataclass(frozen=True, slots=True)
class LevelLayout:
    """What determines the numbers in LDM names: the encoder's ResBlocks, and whether the decoder has transformers."""

    resnets: int
    attention: bool


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """One entry per level, highest resolution first."""

    levels: tuple[LevelLayout, ...]
    middle_resnets: int = 2

    @classmethod
    def of_config(cls, config: UNetConfig) -> "BlockLayout":
        """The layout of a known architecture."""
        return cls(
            levels=tuple(LevelLayout(level.resnets, level.attention is not None) for level in config.levels),
            middle_resnets=config.middle.resnets,
        )

    @classmethod
    def of_ldm_names(cls, names: Collection[str]) -> "BlockLayout":
        """The layout derived from the names of an LDM file: a level ends with its downsampler, `.0.op`."""
        names = set(names)
        resnets, index = [0], 1
        while True:
            if f"input_blocks.{index}.0.op.weight" in names:
                resnets.append(0)
            elif f"input_blocks.{index}.0.in_layers.0.weight" in names:
                resnets[-1] += 1
            else:
                break
            index += 1
        output, attention = 0, []
        for count in reversed(resnets):
            attention.append(f"output_blocks.{output}.1.norm.weight" in names)
            output += count + 1
        middle = 1
        while f"middle_block.{2 * middle}.in_layers.0.weight" in names:
            middle += 1
        return cls(
            levels=tuple(map(LevelLayout, resnets, reversed(attention))),
            middle_resnets=middle,
        )


RESNET = Renaming(
    Pair(ldm, ours)
    for ldm, ours in {
        "in_layers.0": "norm1",
        "in_layers.2": "conv1",
        "emb_layers.1": "time_emb_proj",
        "out_layers.0": "norm2",
        "out_layers.3": "conv2",
        "skip_connection": "conv_shortcut",
    }.items()
)

# Transformers are called the same inside on both sides.
TRANSFORMER = Renaming(same("norm", "proj_in", "transformer_blocks", "proj_out"))


def unet_renaming(layout: BlockLayout) -> Renaming:
    """The table for one layout."""
    return Renaming([*_outside(), *_encoder(layout), *_middle(layout), *_decoder(layout)])


def control_renaming(names: Collection[str]) -> Renaming:
    """The table for a ControlNet with lllyasviel's names: the encoder half of a U-Net's, and its own modules.

    Source: https://github.com/lllyasviel/ControlNet/blob/main/cldm/cldm.py. In `input_hint_block` every second entry is
    a convolution; the first and the last have separate names in diffusers.
    """
    layout = BlockLayout.of_ldm_names(names)
    hint = sorted(int(match[1]) for name in names if (match := re.fullmatch(r"input_hint_block\.(\d+)\.weight", name)))
    embedding = "controlnet_cond_embedding"
    inner = [Pair(f"input_hint_block.{n}", f"{embedding}.blocks.{i}") for i, n in enumerate(hint[1:-1])]
    zeros = sum(re.fullmatch(r"zero_convs\.\d+\.0\.weight", name) is not None for name in names)
    return Renaming(
        [
            *(pair for pair in _outside() if not pair.foreign.startswith("out.")),
            *_encoder(layout),
            *_middle(layout),
            Pair(f"input_hint_block.{hint[0] if hint else 0}", f"{embedding}.conv_in"),
            *inner,
            Pair(f"input_hint_block.{hint[-1] if hint else 14}", f"{embedding}.conv_out"),
            *(Pair(f"zero_convs.{i}.0", f"controlnet_down_blocks.{i}") for i in range(zeros)),
            Pair("middle_block_out.0", "controlnet_mid_block"),
        ]
    )


def _outside() -> Iterator[Pair]:
    yield Pair("time_embed.0", "time_embedding.linear_1")
    yield Pair("time_embed.2", "time_embedding.linear_2")
    # No LDM class has it: the name under which a distilled model (LCM) keeps its guidance projection in one file.
    yield Pair("time_embed.cond_proj", "time_embedding.cond_proj")
    yield Pair("label_emb.0.0", "add_embedding.linear_1")
    yield Pair("label_emb.0.2", "add_embedding.linear_2")
    yield Pair("input_blocks.0.0", "conv_in")
    yield Pair("out.0", "conv_norm_out")
    yield Pair("out.2", "conv_out")


def _encoder(layout: BlockLayout) -> Iterator[Pair]:
    index = 1
    for block, level in enumerate(layout.levels):
        for layer in range(level.resnets):
            yield Pair(f"input_blocks.{index}.0", f"down_blocks.{block}.resnets.{layer}", RESNET)
            yield Pair(f"input_blocks.{index}.1", f"down_blocks.{block}.attentions.{layer}", TRANSFORMER)
            index += 1
        if block < len(layout.levels) - 1:
            yield Pair(f"input_blocks.{index}.0.op", f"down_blocks.{block}.downsamplers.0.conv")
            index += 1


def _middle(layout: BlockLayout) -> Iterator[Pair]:
    yield Pair("middle_block.0", "mid_block.resnets.0", RESNET)
    for layer in range(1, layout.middle_resnets):
        yield Pair(f"middle_block.{2 * layer - 1}", f"mid_block.attentions.{layer - 1}", TRANSFORMER)
        yield Pair(f"middle_block.{2 * layer}", f"mid_block.resnets.{layer}", RESNET)


def _decoder(layout: BlockLayout) -> Iterator[Pair]:
    index = 0
    for block, level in enumerate(reversed(layout.levels)):
        for layer in range(level.resnets + 1):
            yield Pair(f"output_blocks.{index}.0", f"up_blocks.{block}.resnets.{layer}", RESNET)
            if level.attention:
                yield Pair(f"output_blocks.{index}.1", f"up_blocks.{block}.attentions.{layer}", TRANSFORMER)
            index += 1
        if block < len(layout.levels) - 1:
            # The upsampler stands behind the transformer of the level's last ResBlock, if there is one.
            slot = 2 if level.attention else 1
            yield Pair(f"output_blocks.{index - 1}.{slot}.conv", f"up_blocks.{block}.upsamplers.0.conv")
