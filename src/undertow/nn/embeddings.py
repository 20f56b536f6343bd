"""Embeddings of numbers: sinusoids of timesteps and sizes, and the MLP that follows them."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from undertow.nn.adaptable import Linear, WeightRows
from undertow.shapes import Embedding

MAX_PERIOD = 10_000.0


def sinusoid(
    numbers: Shaped[Tensor, "count"], dim: int, *, cos_first: bool = True, frequency_shift: float = 0.0
) -> Float[Tensor, "count dim"]:
    """Sines and cosines of `numbers` at `dim / 2` frequencies exp(-ln(10000) i / (dim / 2 - frequency_shift)), float32.

    Three conventions exist (trap T11): Stable Diffusion puts cosines first with shift 0, DDPM (arXiv:2006.11239, and
    arXiv:1706.03762, section 3.5) sines first with shift 1, source document 002 sines first with shift 0. All
    concatenate; none interleaves.
    """
    half = dim // 2
    # In diffusers' order of operations: another rounds differently, and angles reach a thousand radians.
    exponents = -math.log(MAX_PERIOD) * torch.arange(half, dtype=torch.float32, device=numbers.device)
    angles = numbers.float()[:, None] * torch.exp(exponents / (half - frequency_shift))
    sines, cosines = angles.sin(), angles.cos()
    return torch.cat((cosines, sines) if cos_first else (sines, cosines), dim=-1)


def guidance_sinusoid(guidance: Float[Tensor, "batch"], dim: int) -> Float[Tensor, "batch dim"]:
    """Embedding of the guidance scale for distilled models: 1000 (guidance - 1), sines first, shift 1
    (arXiv:2310.04378, after google-research/vdm `get_timestep_embedding`)."""
    return sinusoid(1000.0 * (guidance.float() - 1.0), dim, cos_first=False, frequency_shift=1.0)


class TimeEmbedding(nn.Module):
    """Linear, SiLU, Linear. With `guidance_dim`, a projected guidance embedding is added to the input (LCM)."""

    def __init__(self, inputs: int, outputs: int, guidance_dim: int | None = None):
        super().__init__()
        self.linear_1 = Linear(inputs, outputs)
        self.cond_proj = None if guidance_dim is None else Linear(guidance_dim, inputs, bias=False)
        self.linear_2 = Linear(outputs, outputs)

    def forward(
        self,
        x: Embedding,
        guidance: Float[Tensor, "batch guidance_dim"] | None = None,
        weights: WeightRows | None = None,
    ) -> Float[Tensor, "batch outputs"]:
        if self.cond_proj is not None and guidance is not None:
            x = x + self.cond_proj(guidance, weights)
        return self.linear_2(F.silu(self.linear_1(x, weights)), weights)
