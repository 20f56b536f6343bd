"""An autoencoder's halves as straight lines of steps, in the order in which `Encoder` and `Decoder` compute."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from undertow.nn.attention import SpatialSelfAttention
from undertow.nn.resample import Upsample
from undertow.nn.resnet import ResBlock
from undertow.vae.autoencoder import AutoencoderKL
from undertow.vae.blocks import DownBlock, DownsampleRightBottom, MiddleBlock, UpBlock
from undertow.vae.steps import Add, Attend, Convolve, ConvolveDoubled, NormSiLU, Remember, Step
from undertow.vae.windows import Size


@dataclass(frozen=True, kw_only=True)
class Program:
    """Steps, and what lies between them: entry k of `sizes`, `channels` and `remembered` describes the map before step
    k, the last entry the result. remembered: channels of the residual input kept there, 0 where there is none. dtype:
    what is computed in; weights stored in another type are converted step by step and let go again."""

    steps: tuple[Step, ...]
    sizes: tuple[Size, ...]
    channels: tuple[int, ...]
    remembered: tuple[int, ...]
    dtype: torch.dtype

    def tail(self, start: int, dtype: torch.dtype) -> "Program":
        """The steps from `start` on, computing in `dtype`."""
        return Program(
            steps=self.steps[start:],
            sizes=self.sizes[start:],
            channels=self.channels[start:],
            remembered=self.remembered[start:],
            dtype=dtype,
        )


def encode_program(vae: AutoencoderKL, size: Size, dtype: torch.dtype | None = None) -> Program:
    """Pixels of `size` to moments. dtype: `None` computes in the weights' own type."""
    return _program([*_encode(vae)], size, vae.config.in_channels, vae.dtype if dtype is None else dtype)


def decode_program(vae: AutoencoderKL, size: Size, dtype: torch.dtype | None = None) -> Program:
    """Latents of `size` to pixels. dtype: `None` computes in the weights' own type."""
    return _program([*_decode(vae)], size, vae.config.latent_channels, vae.dtype if dtype is None else dtype)


def _program(steps: list[Step], size: Size, channels: int, dtype: torch.dtype) -> Program:
    sizes, widths, remembered = [size], [channels], [0]
    for step in steps:
        match step:
            case Remember():
                kept = widths[-1]
            case Add():
                kept = 0
            case _:
                kept = remembered[-1]
        sizes.append(step.size(sizes[-1]))
        widths.append(step.channels(widths[-1]))
        remembered.append(kept)
    return Program(
        steps=tuple(steps), sizes=tuple(sizes), channels=tuple(widths), remembered=tuple(remembered), dtype=dtype
    )


def _encode(vae: AutoencoderKL) -> Iterator[Step]:
    encoder = vae.encoder
    yield Convolve(name="encoder.conv_in", conv=encoder.conv_in)
    for index, block in enumerate(cast(Iterable[DownBlock], encoder.down_blocks)):
        name = f"encoder.down_blocks.{index}"
        yield from _resnets(name, block.resnets)
        if block.downsamplers is not None:
            downsample = cast(DownsampleRightBottom, block.downsamplers[0])
            yield Convolve(name=f"{name}.downsamplers.0.conv", conv=downsample.conv)
    yield from _middle("encoder.mid_block", encoder.mid_block)
    yield NormSiLU(name="encoder.conv_norm_out", norm=encoder.conv_norm_out)
    yield Convolve(name="encoder.conv_out", conv=encoder.conv_out)
    if vae.quant_conv is not None:
        yield Convolve(name="quant_conv", conv=vae.quant_conv)


def _decode(vae: AutoencoderKL) -> Iterator[Step]:
    decoder = vae.decoder
    if vae.post_quant_conv is not None:
        yield Convolve(name="post_quant_conv", conv=vae.post_quant_conv)
    yield Convolve(name="decoder.conv_in", conv=decoder.conv_in)
    yield from _middle("decoder.mid_block", decoder.mid_block)
    for index, block in enumerate(cast(Iterable[UpBlock], decoder.up_blocks)):
        name = f"decoder.up_blocks.{index}"
        yield from _resnets(name, block.resnets)
        if block.upsamplers is not None:
            upsample = cast(Upsample, block.upsamplers[0])
            yield ConvolveDoubled(name=f"{name}.upsamplers.0.conv", conv=upsample.conv)
    yield NormSiLU(name="decoder.conv_norm_out", norm=decoder.conv_norm_out)
    yield Convolve(name="decoder.conv_out", conv=decoder.conv_out)


def _middle(name: str, block: MiddleBlock) -> Iterator[Step]:
    first, second = (_resnet(f"{name}.resnets.{index}", resnet) for index, resnet in enumerate(block.resnets))
    yield from first
    for index, attention in enumerate(block.attentions):
        yield Attend(name=f"{name}.attentions.{index}", attention=cast(SpatialSelfAttention, attention))
    yield from second


def _resnets(name: str, resnets: nn.ModuleList) -> Iterator[Step]:
    for index, resnet in enumerate(resnets):
        yield from _resnet(f"{name}.resnets.{index}", resnet)


def _resnet(name: str, module: nn.Module) -> Iterator[Step]:
    """`ResBlock.forward` without time embedding and dropout, which an autoencoder has not."""
    block = cast(ResBlock, module)
    yield Remember(name=name)
    yield NormSiLU(name=f"{name}.norm1", norm=block.norm1)
    yield Convolve(name=f"{name}.conv1", conv=block.conv1)
    yield NormSiLU(name=f"{name}.norm2", norm=block.norm2)
    yield Convolve(name=f"{name}.conv2", conv=block.conv2)
    yield Add(name=name, shortcut=block.conv_shortcut)
