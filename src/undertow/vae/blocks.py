"""The stages of the autoencoder. Module names are diffusers': `resnets`, `attentions`, `downsamplers`, `upsamplers`."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from undertow.attention.kernel import AttentionKernel
from undertow.nn.adaptable import Conv2d, WeightRows, is_only_convolved
from undertow.nn.attention import SpatialSelfAttention
from undertow.nn.matmul import convolve_doubled, doubling_is_left_out
from undertow.nn.resample import Doubled, Halved, Upsample
from undertow.nn.resnet import ResBlock
from undertow.shapes import AttentionMask, FeatureMap, Keys, Queries
from undertow.vae.config import NORM_EPS, VAEConfig

NewFeatureMap = Float[Tensor, "batch new_channels new_height new_width"]

QUERIES = 4096
"""Queries per kernel call: where no fused kernel takes a head 512 wide, scores stay at 4096 x cells, not cells²."""


class DownsampleRightBottom(nn.Module):
    """3x3 convolution with stride 2 over a map padded on the right and at the bottom: the size must be even.

    Not `nn.resample.Downsample`, which pads all sides: the autoencoder's differs since CompVis' first release.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv2d(channels, channels, kernel_size=3, stride=2)

    def forward(self, x: FeatureMap) -> Halved:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class DownBlock(nn.Module):
    """One level of the encoder."""

    def __init__(self, config: VAEConfig, index: int):
        super().__init__()
        inputs, outputs = config.level_channels[max(index - 1, 0)], config.level_channels[index]
        self.resnets = nn.ModuleList(
            res_block(config, inputs if i == 0 else outputs, outputs) for i in range(config.resnets)
        )
        last = index == len(config.level_channels) - 1
        self.downsamplers = None if last else nn.ModuleList([DownsampleRightBottom(outputs)])

    def forward(self, x: FeatureMap) -> NewFeatureMap:
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.downsamplers is None else self.downsamplers[0](x)


class MiddleBlock(nn.Module):
    """ResBlock, self-attention over all cells with one head, ResBlock."""

    def __init__(self, config: VAEConfig, kernel: AttentionKernel):
        super().__init__()
        channels = config.level_channels[-1]
        self.resnets = nn.ModuleList(res_block(config, channels, channels) for _ in range(2))
        self.attentions = nn.ModuleList(
            [SpatialSelfAttention(channels, 1, norm_groups=config.norm_groups, norm_eps=NORM_EPS, kernel=kernel)]
            if config.middle_attention
            else []
        )

    def forward(self, x: FeatureMap) -> FeatureMap:
        x = self.resnets[0](x)
        for attention in self.attentions:
            # In PyTorch's usual order. Attention leaves the channels last, an order that all later layers would keep
            # and in which PyTorch's GroupNorm on CPU sums naively: over 512x512 cells it is off by 1e-4.
            x = attention(x).contiguous()
        return self.resnets[1](x)


class UpBlock(nn.Module):
    """One level of the decoder, counted from the lowest resolution."""

    def __init__(self, config: VAEConfig, index: int):
        super().__init__()
        channels = config.level_channels[::-1]
        inputs, outputs = channels[max(index - 1, 0)], channels[index]
        self.resnets = nn.ModuleList(
            res_block(config, inputs if i == 0 else outputs, outputs) for i in range(config.resnets + 1)
        )
        last = index == len(channels) - 1
        self.upsamplers = None if last else nn.ModuleList([Doubling(outputs)])

    def forward(self, x: FeatureMap) -> NewFeatureMap:
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.upsamplers is None else self._double(x)

    def _double(self, x: FeatureMap) -> Doubled:
        assert self.upsamplers is not None
        return self.upsamplers[0](x, (2 * x.shape[2], 2 * x.shape[3]))


class Doubling(Upsample):
    """`Upsample` to twice the size, without the doubled map where that is faster."""

    def forward(self, x: FeatureMap, size: tuple[int, int], weights: WeightRows | None = None) -> Doubled:
        if weights is not None or not (is_only_convolved(self.conv) and doubling_is_left_out(x)):
            return super().forward(x, size, weights)
        return convolve_doubled(x, self.conv.weight, self.conv.bias, slice(0, size[0]), slice(0, size[1]))


def res_block(config: VAEConfig, inputs: int, outputs: int) -> ResBlock:
    """A residual block as all of the autoencoder's are: without a time embedding."""
    return ResBlock(inputs, outputs, None, norm_groups=config.norm_groups, norm_eps=NORM_EPS)


def in_query_chunks(kernel: AttentionKernel, queries: int = QUERIES) -> AttentionKernel:
    """`kernel`, called for `queries` queries at a time. The same numbers: each query's softmax is its own."""

    def attend(query: Queries, key: Keys, value: Keys, mask: AttentionMask | None = None) -> Queries:
        if query.shape[2] <= queries:
            return kernel(query, key, value, mask)
        rows = [None] * -(-query.shape[2] // queries)
        masks = rows if mask is None else mask.expand(-1, -1, query.shape[2], -1).split(queries, dim=2)
        parts = zip(query.split(queries, dim=2), masks, strict=True)
        return torch.cat([kernel(part, key, value, rows) for part, rows in parts], dim=2)

    return attend
