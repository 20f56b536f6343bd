"""Transformers of text-conditioned stages (arXiv:2112.10752, section 3.3 and appendix E.2.1)."""

from dataclasses import replace

from torch import nn

from undertow.attention.kernel import AttentionKernel
from undertow.nn.adaptable import Conv2d, Linear, WeightRows
from undertow.nn.attention import Attention, AttentionInputs
from undertow.nn.feedforward import FeedForward
from undertow.nn.normalization import GroupNorm
from undertow.shapes import FeatureMap, Sequence

TRANSFORMER_NORM_EPS = 1e-6
"""GroupNorm's epsilon before a transformer; the ResBlocks' is 1e-5 (CompVis ldm/modules/attention.py `Normalize`)."""


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the context and a feed-forward layer, each with a LayerNorm before it and a
    residual connection."""

    def __init__(self, dim: int, heads: int, context_dim: int, *, kernel: AttentionKernel):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, heads, kernel=kernel)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, heads, context_dim=context_dim, kernel=kernel)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, x: Sequence, inputs: AttentionInputs) -> Sequence:
        x = x + self.attn1(self.norm1(x), inputs)
        x = x + self.attn2(self.norm2(x), inputs)
        return x + self.ff(self.norm3(x), inputs.weights, inputs.feed_forward_chunks)


class SpatialTransformer(nn.Module):
    """`depth` transformer blocks over the cells of a feature map, between two projections, with a residual connection
    around all of it.

    SD1 projects by 1x1 convolutions, SD2 and SDXL by linear layers (`linear_projection`).
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        depth: int,
        context_dim: int,
        *,
        norm_groups: int,
        linear_projection: bool,
        kernel: AttentionKernel,
    ):
        super().__init__()
        self.linear_projection = linear_projection
        self.norm = GroupNorm(norm_groups, channels, TRANSFORMER_NORM_EPS)
        self.proj_in = _projection(channels, linear_projection)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, heads, context_dim, kernel=kernel) for _ in range(depth)
        )
        self.proj_out = _projection(channels, linear_projection)

    def forward(self, x: FeatureMap, inputs: AttentionInputs) -> FeatureMap:
        height, weights = x.shape[2], inputs.weights
        inputs = replace(inputs, height=height)
        tokens = self._project_in(x, weights)
        for block in self.transformer_blocks:
            tokens = block(tokens, inputs)
        if self.linear_projection:
            return x + _to_map(self.proj_out(tokens, weights), height)
        return x + self.proj_out(_to_map(tokens, height), weights)

    def _project_in(self, x: FeatureMap, weights: WeightRows | None) -> Sequence:
        hidden = self.norm(x)
        if self.linear_projection:
            return self.proj_in(_to_tokens(hidden), weights)
        return _to_tokens(self.proj_in(hidden, weights))


def _projection(channels: int, linear: bool) -> Linear | Conv2d:
    return Linear(channels, channels) if linear else Conv2d(channels, channels, kernel_size=1)


def _to_tokens(x: FeatureMap) -> Sequence:
    return x.flatten(2).transpose(1, 2)


def _to_map(x: Sequence, height: int) -> FeatureMap:
    return x.transpose(1, 2).unflatten(2, (height, -1))
