"""Gaussian paths between data and noise, in the space that samplers work in: x = alpha(sigma) x0 + sigma noise.

All paths obey the same ordinary differential equation, dx/dsigma = (x - denoised) / sigma, so one sampler serves all.
They differ in how much of the data is left at a level of noise, and in how the network wants its input scaled.
"""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.known_names import PathName, StartNoise
from undertow.shapes import Sigmas


def working(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 when it is float64: sigma arithmetic never happens in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def per_row(values: Sigmas, like: Tensor) -> Tensor:
    """One number per row, shaped to multiply `working(like)`: [batch, 1, 1, ...] on its device."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return values.to(device=like.device, dtype=dtype).reshape(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class VariancePreserving:
    """DDPM's path (arXiv:2006.11239, eq. 4) in the scaling of EDM (arXiv:2206.00364, table 1): x = x0 + sigma noise.

    DDPM writes sqrt(abar) x0 + sqrt(1 - abar) noise; dividing by sqrt(abar) gives ours with
    sigma = sqrt((1 - abar) / abar), and the network receives c_in x, which is DDPM's variable again.
    """

    def alpha(self, sigma: Sigmas) -> Sigmas:
        """How much of the data is in x: all of it, at every level of noise."""
        return torch.ones_like(sigma)

    def input_scale(self, sigma: Sigmas) -> Sigmas:
        """c_in = 1 / sqrt(1 + sigma^2) = sqrt(abar); only the network's input is multiplied by it, never x itself."""
        return torch.rsqrt(1 + sigma**2)

    def add_noise(
        self, x0: Float[Tensor, "batch ..."], noise: Float[Tensor, "batch ..."], sigma: Sigmas
    ) -> Float[Tensor, "batch ..."]:
        """The point of the path at `sigma`, in the dtype of `x0`."""
        return _mix(self.alpha(sigma), x0, sigma, noise)

    def pure_noise(self, noise: Float[Tensor, "..."], sigma: float) -> Float[Tensor, "..."]:
        """Where sampling starts from nothing: variance 1 + sigma^2, so that the network's input has variance 1.

        As ComfyUI at full denoise and diffusers' DDPM and DDIM; diffusers' Euler with linspace spacing starts at
        sigma noise instead.
        """
        return noise * (1 + sigma**2) ** 0.5


@dataclass(frozen=True)
class RectifiedFlow:
    """The straight path of rectified flow and flow matching (arXiv:2209.03003; arXiv:2210.02747, eq. 20-22).

    x = (1 - sigma) x0 + sigma noise, with sigma = t in [0, 1]: 0 is clean, 1 is noise (trap T14; the papers run the
    other way round). The network receives x as it is.
    """

    def alpha(self, sigma: Sigmas) -> Sigmas:
        """How much of the data is in x: 1 - sigma."""
        return 1 - sigma

    def input_scale(self, sigma: Sigmas) -> Sigmas:
        """1: the input of a flow network is not scaled."""
        return torch.ones_like(sigma)

    def add_noise(
        self, x0: Float[Tensor, "batch ..."], noise: Float[Tensor, "batch ..."], sigma: Sigmas
    ) -> Float[Tensor, "batch ..."]:
        """The point of the path at `sigma`, in the dtype of `x0`."""
        return _mix(self.alpha(sigma), x0, sigma, noise)

    def pure_noise(self, noise: Float[Tensor, "..."], sigma: float) -> Float[Tensor, "..."]:
        """Where sampling starts from nothing: sigma noise, the noise itself at sigma = 1."""
        return noise * sigma


@dataclass(frozen=True)
class VarianceExploding:
    """EDM's path (arXiv:2206.00364, table 1): x = x0 + sigma noise, for data of standard deviation sigma_data.

    As `VariancePreserving` to a sampler; the network wants another scale, and sampling starts from sigma noise.
    """

    sigma_data: float = 0.5

    def alpha(self, sigma: Sigmas) -> Sigmas:
        """How much of the data is in x: all of it, at every level of noise."""
        return torch.ones_like(sigma)

    def input_scale(self, sigma: Sigmas) -> Sigmas:
        """c_in = 1 / sqrt(sigma_data^2 + sigma^2): the network's input has variance 1."""
        return torch.rsqrt(self.sigma_data**2 + sigma**2)

    def add_noise(
        self, x0: Float[Tensor, "batch ..."], noise: Float[Tensor, "batch ..."], sigma: Sigmas
    ) -> Float[Tensor, "batch ..."]:
        """The point of the path at `sigma`, in the dtype of `x0`."""
        return _mix(self.alpha(sigma), x0, sigma, noise)

    def pure_noise(self, noise: Float[Tensor, "..."], sigma: float) -> Float[Tensor, "..."]:
        """Where sampling starts from nothing: sigma noise (algorithm 2, line 2)."""
        return noise * sigma


Path = VariancePreserving | VarianceExploding | RectifiedFlow


def path_name(path: Path) -> PathName:
    """What a path is called where there is no torch."""
    return cast(PathName, type(path).__name__)


def starting_noise(path: Path, noise: Float[Tensor, "..."], sigma: float, size: StartNoise) -> Float[Tensor, "..."]:
    """Where sampling starts from nothing at `sigma`, from standard normal noise."""
    return path.pure_noise(noise, sigma) if size == "variance" else noise * sigma


def snr(path: Path, sigma: Sigmas) -> Sigmas:
    """Signal-to-noise ratio (alpha / sigma)^2, abar / (1 - abar) in DDPM's letters (min-SNR, arXiv:2303.09556)."""
    return (path.alpha(sigma) / sigma) ** 2


def _mix(alpha: Sigmas, x0: Tensor, sigma: Sigmas, noise: Tensor) -> Tensor:
    return (per_row(alpha, x0) * working(x0) + per_row(sigma, x0) * working(noise)).to(x0.dtype)
