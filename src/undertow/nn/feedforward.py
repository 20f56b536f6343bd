"""The transformer's feed-forward layer."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from undertow.nn.adaptable import Linear, WeightRows
from undertow.shapes import Sequence


class GEGLU(nn.Module):
    """Gated GELU (arXiv:2002.05202): one half of the projection, times the exact (erf) GELU of the other half.

    Source document 000 shows "Linear, GELU"; every Stable Diffusion model uses this gate instead (trap T2).
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.proj = Linear(inputs, 2 * outputs)

    def forward(self, x: Sequence, weights: WeightRows | None = None) -> Float[Tensor, "batch tokens outputs"]:
        value, gate = self.proj(x, weights).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU to four times the width, and a projection back. Indices of `net` are diffusers': 0 the gate, 1 dropout, 2
    the projection back."""

    def __init__(self, dim: int):
        super().__init__()
        self.net = nn.ModuleList([GEGLU(dim, 4 * dim), nn.Identity(), Linear(4 * dim, dim)])

    def forward(self, x: Sequence, weights: WeightRows | None = None, chunks: int = 1) -> Sequence:
        """chunks: parts of the tokens, one after the other. Every token is computed alone, so that the result is the
        same within rounding, while the projection to eight times the width, the largest activation of a U-Net with
        fused attention, is held for one part only. Parts are copied, because PyTorch multiplies tokens that do not lie
        one after the other in half precision by a copy of the weights for each row."""
        if chunks == 1:
            return self._computed(x, weights)
        return torch.cat([self._computed(part.contiguous(), weights) for part in x.chunk(chunks, dim=1)], dim=1)

    def _computed(self, x: Sequence, weights: WeightRows | None) -> Sequence:
        return self.net[2](self.net[0](x, weights), weights)
