"""Attention settings as a record, with the interface that source document 000 asks for."""

from dataclasses import dataclass
from importlib.util import find_spec

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from undertow.attention.kernel import AttentionKernel, zero_empty_rows
from undertow.attention.math import math_attention
from undertow.attention.sdpa import sdpa_attention
from undertow.attention.xformers import xformers_attention
from undertow.doors import checked_record
from undertow.errors import ConfigError, MissingDependency
from undertow.shapes import AttentionMask


@checked_record
@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Multi-head attention's settings, and `calculate_attention` that applies them.

    dropout: probability with which a weight is dropped; give 0 outside training. use_flash_attention: PyTorch's fused
    kernels; without it, scores and softmax are written out in float32. use_xformers: the kernel of that package.
    Errors: `ConfigError`, and `MissingDependency` when xformers is asked for and not installed.
    """

    num_heads: int
    head_dim: int
    dropout: float = 0.0
    use_flash_attention: bool = True
    use_xformers: bool = False

    def __post_init__(self) -> None:
        for name in ("num_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(name, getattr(self, name), "must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError("dropout", self.dropout, "must lie in [0, 1)")
        if self.use_xformers and self.dropout > 0:
            raise ConfigError("use_xformers", True, "must be False with dropout: its kernel is used for inference only")
        if self.use_xformers and find_spec("xformers") is None:
            raise MissingDependency("xformers", "xformers")

    @property
    def kernel(self) -> AttentionKernel:
        """The kernel that these settings select."""
        if self.use_xformers:
            return xformers_attention
        return sdpa_attention if self.use_flash_attention else math_attention

    def calculate_attention(
        self,
        query: Float[Tensor, "batch queries dim"],
        key: Float[Tensor, "batch keys dim"],
        value: Float[Tensor, "batch keys dim"],
        mask: AttentionMask | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """softmax(query keyᵀ / sqrt(head_dim)) value for each head, where dim is num_heads x head_dim. mask: True where
        a query may attend to a key.

        Errors: `ConfigError` when the query has another width.
        """
        width = self.num_heads * self.head_dim
        if query.shape[-1] != width:
            raise ConfigError("num_heads x head_dim", width, f"must be the width of the query, {query.shape[-1]}")
        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in (query, key, value))
        output = self._with_dropout(q, k, v, mask) if self.dropout > 0 else self.kernel(q, k, v, mask)
        return output.transpose(1, 2).flatten(2)

    def _with_dropout(self, query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask | None) -> Tensor:
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=self.dropout)
        return output if mask is None else zero_empty_rows(output, mask)
