"""Attention as the networks use it: projections around an injected kernel, with the image port."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor, nn

from undertow.attention.kernel import AttentionKernel
from undertow.nn.adaptable import Linear, WeightRows
from undertow.shapes import AttentionMask, FeatureMap, Heads, Sequence


@dataclass(frozen=True, kw_only=True)
class ImageTokens:
    """The image port at one cross-attention: keys and values of a reference picture (IP-Adapter, arXiv:2308.06721).

    They depend on neither latents nor timestep and are computed once per request. gain: strength per row. mask: True
    where a token is real, for rows with fewer tokens than others.
    """

    keys: Float[Tensor, "batch image_tokens dim"]
    values: Float[Tensor, "batch image_tokens dim"]
    gain: Float[Tensor, "batch"]
    mask: Bool[Tensor, "batch image_tokens"] | None = None


class AttentionProjections(nn.Module):
    """The four projections of multi-head attention and the injected kernel between them.

    site: this module's name in its network, under which the image port finds it.
    """

    def __init__(
        self, dim: int, heads: int, *, context_dim: int | None = None, bias: bool = False, kernel: AttentionKernel
    ):
        super().__init__()
        source = dim if context_dim is None else context_dim
        self.site = ""
        self.heads = heads
        self.kernel = kernel
        self.to_q = Linear(dim, dim, bias=bias)
        self.to_k = Linear(source, dim, bias=bias)
        self.to_v = Linear(source, dim, bias=bias)
        self.to_out = nn.ModuleList([Linear(dim, dim)])

    def attend(
        self,
        x: Sequence,
        context: Float[Tensor, "batch keys context_dim"],
        *,
        mask: AttentionMask | None = None,
        weights: WeightRows | None = None,
        image: Mapping[str, ImageTokens] | None = None,
    ) -> Sequence:
        query = self._split(self.to_q(x, weights))
        key, value = self._split(self.to_k(context, weights)), self._split(self.to_v(context, weights))
        output = self.kernel(query, key, value, mask)
        if image is not None and self.site in image:
            output = output + self._attend_to_image(query, image[self.site])
        return self.to_out[0](output.transpose(1, 2).flatten(2), weights)

    def _attend_to_image(self, query: Heads, tokens: ImageTokens) -> Heads:
        mask = None if tokens.mask is None else tokens.mask[:, None, None, :]
        output = self.kernel(query, self._split(tokens.keys), self._split(tokens.values), mask)
        return output * tokens.gain[:, None, None, None].to(output.dtype)

    def _split(self, x: Sequence) -> Heads:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Attention(AttentionProjections):
    """Multi-head attention of a sequence to itself, or to a context (arXiv:1706.03762, section 3.2.2)."""

    def forward(
        self,
        x: Sequence,
        context: Float[Tensor, "batch keys context_dim"] | None = None,
        *,
        mask: AttentionMask | None = None,
        weights: WeightRows | None = None,
        image: Mapping[str, ImageTokens] | None = None,
    ) -> Sequence:
        return self.attend(x, x if context is None else context, mask=mask, weights=weights, image=image)


class SpatialSelfAttention(AttentionProjections):
    """Self-attention over the cells of a feature map, with its own GroupNorm and residual (arXiv:2006.11239).

    The projections are 1x1 convolutions, stored as matrices of the same numbers.
    """

    def __init__(self, channels: int, heads: int, *, norm_groups: int, norm_eps: float, kernel: AttentionKernel):
        super().__init__(channels, heads, bias=True, kernel=kernel)
        self.group_norm = nn.GroupNorm(norm_groups, channels, norm_eps)

    def forward(self, x: FeatureMap, *, weights: WeightRows | None = None) -> FeatureMap:
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        return x + self.attend(tokens, tokens, weights=weights).transpose(1, 2).reshape(x.shape)
