"""The residual block of every stage."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from undertow.nn.adaptable import Conv2d, Linear, WeightRows
from undertow.nn.normalization import GroupNorm
from undertow.shapes import FeatureMap


class ResBlock(nn.Module):
    """GroupNorm, SiLU, 3x3 convolution, plus the time embedding, GroupNorm, SiLU, dropout, 3x3 convolution, plus the
    input, which passes a 1x1 convolution where the channels differ (arXiv:2006.11239, appendix B).

    embedding_dim: width of the time embedding; `None` builds a block without one, as in an autoencoder.

    GroupNorm's statistics are float32 with biased variance for every input type: PyTorch's kernels see to it, and
    tests/nn/test_normalization.py watches over it.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding_dim: int | None,
        *,
        norm_groups: int,
        norm_eps: float,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.norm1 = GroupNorm(norm_groups, inputs, norm_eps)
        self.conv1 = Conv2d(inputs, outputs, kernel_size=3, padding=1)
        self.time_emb_proj = None if embedding_dim is None else Linear(embedding_dim, outputs)
        self.norm2 = GroupNorm(norm_groups, outputs, norm_eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = Conv2d(outputs, outputs, kernel_size=3, padding=1)
        self.conv_shortcut = None if inputs == outputs else Conv2d(inputs, outputs, kernel_size=1)

    def forward(
        self, x: FeatureMap, embedding: Float[Tensor, "batch dim"] | None = None, weights: WeightRows | None = None
    ) -> Float[Tensor, "batch outputs height width"]:
        """`embedding` has passed its SiLU already: it is the same for every block of a network."""
        hidden = self.conv1(F.silu(self.norm1(x)), weights)
        if self.time_emb_proj is not None:
            hidden = hidden + self.time_emb_proj(embedding, weights)[:, :, None, None]
        hidden = self.conv2(self.dropout(F.silu(self.norm2(hidden))), weights)
        return hidden + (x if self.conv_shortcut is None else self.conv_shortcut(x, weights))
