"""How features of a picture become tokens as wide as the text: the networks in front of an IP-Adapter.

Parameter names are those of the authors' files (tencent-ailab/IP-Adapter, `ip_adapter/ip_adapter.py`, `resampler.py`).
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from undertow.attention.chosen import auto_attention
from undertow.encoders.image_config import PUBLISHED_VISION
from undertow.nn.initialization import normal
from undertow.shapes import Heads, Sequence

Variant = Literal["base", "plus", "full"]
Wants = Literal["pooled", "hidden"]
Tokens = Float[Tensor, "images tokens context"]

HEAD_DIM = 64
"""Of the resampler's attention, in every published file; shapes do not tell it."""


class BaseProjection(nn.Module):
    """One pooled vector, through a matrix into `tokens` tokens (arXiv:2308.06721, section 3.2.1)."""

    variant: Variant = "base"
    wants: Wants = "pooled"

    def __init__(self, feature_dim: int, context_dim: int, tokens: int):
        super().__init__()
        self.feature_dim, self.context_dim, self.tokens = feature_dim, context_dim, tokens
        self.proj = nn.Linear(feature_dim, tokens * context_dim)
        self.norm = nn.LayerNorm(context_dim)

    def forward(self, pooled: Float[Tensor, "images pooled_dim"]) -> Tokens:
        return self.norm(self.proj(pooled).unflatten(1, (self.tokens, -1)))


class FullProjection(nn.Module):
    """Every hidden state becomes a token by itself, through an MLP (the Full Face files). tokens: as many as the
    encoder has hidden states."""

    variant: Variant = "full"
    wants: Wants = "hidden"

    def __init__(self, feature_dim: int, context_dim: int, tokens: int):
        super().__init__()
        self.feature_dim, self.context_dim, self.tokens = feature_dim, context_dim, tokens
        self.proj = nn.Sequential(
            nn.Linear(feature_dim, feature_dim),
            nn.GELU(),
            nn.Linear(feature_dim, context_dim),
            nn.LayerNorm(context_dim),
        )

    def forward(self, hidden: Float[Tensor, "images patches hidden_dim"]) -> Tokens:
        return self.proj(hidden)


class PlusProjection(nn.Module):
    """Learned tokens that look at the hidden states again and again: a perceiver resampler (arXiv:2103.03206,
    arXiv:2204.14198, section 3.1.1; the Plus files). width: of the tokens on the way."""

    variant: Variant = "plus"
    wants: Wants = "hidden"

    def __init__(self, feature_dim: int, context_dim: int, tokens: int, *, width: int, depth: int, heads: int):
        super().__init__()
        self.feature_dim, self.context_dim, self.tokens = feature_dim, context_dim, tokens
        self.latents = nn.Parameter(normal(1, tokens, width, std=width**-0.5))
        self.proj_in = nn.Linear(feature_dim, width)
        self.proj_out = nn.Linear(width, context_dim)
        self.norm_out = nn.LayerNorm(context_dim)
        self.layers = nn.ModuleList(
            nn.ModuleList((ResamplerAttention(width, heads), _feed_forward(width))) for _ in range(depth)
        )

    def forward(self, hidden: Float[Tensor, "images patches hidden_dim"]) -> Tokens:
        seen = self.proj_in(hidden)
        tokens = self.latents.expand(len(hidden), -1, -1)
        for layer in self.layers:
            attention, feed_forward = layer  # pyright: ignore[reportGeneralTypeIssues]  a ModuleList
            tokens = tokens + attention(tokens, seen)
            tokens = tokens + feed_forward(tokens)
        return self.norm_out(self.proj_out(tokens))


class ResamplerAttention(nn.Module):
    """Tokens look at the picture's features and at each other (arXiv:2204.14198, section 3.1.1)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        inner = heads * HEAD_DIM
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, tokens: Sequence, seen: Float[Tensor, "batch patches dim"]) -> Sequence:
        seen, tokens = self.norm1(seen), self.norm2(tokens)
        key, value = self.to_kv(torch.cat([seen, tokens], dim=1)).chunk(2, dim=-1)
        output = auto_attention(self._split(self.to_q(tokens)), self._split(key), self._split(value))
        return self.to_out(output.transpose(1, 2).flatten(2))

    def _split(self, x: Sequence) -> Heads:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, 4 * width, bias=False), nn.GELU(), nn.Linear(4 * width, width, bias=False)
    )


Projection = BaseProjection | PlusProjection | FullProjection


PUBLISHED_AT: Mapping[str, str] = {
    "OpenCLIP ViT-H/14": "h94/IP-Adapter/models/image_encoder/model.safetensors",
    "OpenCLIP ViT-bigG/14": "h94/IP-Adapter/sdxl_models/image_encoder/model.safetensors",
    "OpenAI CLIP ViT-L/14": "openai/clip-vit-large-patch14/model.safetensors",
}
"""Files on the Hub, as `load_image_encoder` takes them."""


def encoder_for(wants: Wants, feature_dim: int) -> str:
    """The encoder to give, in words: a published one with its file on the Hub, or what its width must be."""
    for name, config in PUBLISHED_VISION.items():
        if feature_dim == (config.projection if wants == "pooled" else config.width):
            return f"{name} ({PUBLISHED_AT[name]})"
    part = "projection is" if wants == "pooled" else "hidden states are"
    return f"an encoder whose {part} {feature_dim} wide"
