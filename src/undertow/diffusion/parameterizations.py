"""What a network's output means: the noise, v, the data or a velocity, each with its inverse and its training target.

`x` is in sampler space (`paths.py`), the network's scaled input never appears here. With D for denoised:

    epsilon    prediction = noise                             D = x - sigma prediction
    v          prediction = (noise - sigma x0) / sqrt(1+s^2)  D = x / (1+s^2) - sigma prediction / sqrt(1+s^2)
    x0         prediction = x0                                D = prediction
    velocity   prediction = noise - x0                        D = x - sigma prediction
    edm        prediction = (x0 - c_skip x) / c_out           D = c_skip x + c_out prediction

Every conversion goes through D in closed form. The results have the dtype of `x` or `x0`; the arithmetic is in float32
or better.
"""

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from undertow.diffusion.paths import Path, RectifiedFlow, VarianceExploding, VariancePreserving, per_row, working
from undertow.lookup import look_up
from undertow.shapes import Sigmas

Rows = Float[Tensor, "batch ..."]


@dataclass(frozen=True)
class Epsilon:
    """The network predicts the noise (DDPM, arXiv:2006.11239, eq. 11 and 14)."""

    path: VariancePreserving = field(default=VariancePreserving(), init=False)

    def denoised(self, prediction: Rows, x: Rows, sigma: Sigmas) -> Rows:
        """Estimate of x0."""
        return _denoised_along_noise(prediction, x, sigma)

    def prediction_from_denoised(self, denoised: Rows, x: Rows, sigma: Sigmas) -> Rows:
        """What the network must have said; sigma > 0."""
        return _noise_direction(denoised, x, sigma)

    def target(self, x0: Rows, noise: Rows, sigma: Sigmas) -> Rows:
        """What the network should say."""
        return noise.to(x0.dtype)


@dataclass(frozen=True)
class VPrediction:
    """The network predicts v = sqrt(abar) noise - sqrt(1 - abar) x0 (arXiv:2202.00512, appendix D)."""

    path: VariancePreserving = field(default=VariancePreserving(), init=False)

    def denoised(self, prediction: Rows, x: Rows, sigma: Sigmas) -> Rows:
        """Estimate of x0."""
        c_skip = per_row(1 / (1 + sigma**2), x)
        c_out = per_row(-sigma / (1 + sigma**2) ** 0.5, x)
        return (c_skip * working(x) + c_out * working(prediction)).to(x.dtype)

    def prediction_from_denoised(self, denoised: Rows, x: Rows, sigma: Sigmas) -> Rows:
        """What the network must have said; sigma > 0."""
        root = (1 + sigma**2) ** 0.5
        scaled = per_row(1 / (sigma * root), x) * working(x) - per_row(root / sigma, x) * working(denoised)
        return scaled.to(x.dtype)

    def target(self, x0: Rows, noise: Rows, sigma: Sigmas) -> Rows:
        """What the network should say."""
        scale = per_row((1 + sigma**2) ** -0.5, x0)
        return (scale * (working(noise) - per_row(sigma, x0) * working(x0))).to(x0.dtype)


@dataclass(frozen=True)
class XPrediction:
    """The network predicts the data itself; "sample" in diffusers. Possible on either path."""

    path: Path = field(default=VariancePreserving())

    def denoised(self, prediction: Rows, x: Rows, sigma: Sigmas) -> Rows:
        """Estimate of x0."""
        return prediction.to(x.dtype)

    def prediction_from_denoised(self, denoised: Rows, x: Rows, sigma: Sigmas) -> Rows:
        """What the network must have said."""
        return denoised.to(x.dtype)

    def target(self, x0: Rows, noise: Rows, sigma: Sigmas) -> Rows:
        """What the network should say."""
        return x0


@dataclass(frozen=True)
class Velocity:
    """The network predicts noise - x0, the direction of the straight path (arXiv:2209.03003, eq. 1, time reversed)."""

    path: RectifiedFlow = field(default=RectifiedFlow(), init=False)

    def denoised(self, prediction: Rows, x: Rows, sigma: Sigmas) -> Rows:
        """Estimate of x0."""
        return _denoised_along_noise(prediction, x, sigma)

    def prediction_from_denoised(self, denoised: Rows, x: Rows, sigma: Sigmas) -> Rows:
        """What the network must have said; sigma > 0."""
        return _noise_direction(denoised, x, sigma)

    def target(self, x0: Rows, noise: Rows, sigma: Sigmas) -> Rows:
        """What the network should say."""
        return (working(noise) - working(x0)).to(x0.dtype)


@dataclass(frozen=True)
class EDMPrediction:
    """The network predicts what is missing from c_skip x, scaled to variance 1 (arXiv:2206.00364, eq. 7 and table 1).

    v: with the other sign, as models do that began with v prediction (CosXL; diffusers' EDM schedulers with
    prediction_type v_prediction).
    """

    path: VarianceExploding = field(default=VarianceExploding())
    v: bool = False

    def denoised(self, prediction: Rows, x: Rows, sigma: Sigmas) -> Rows:
        """Estimate of x0."""
        c_skip, c_out = self._scales(sigma)
        return (per_row(c_skip, x) * working(x) + per_row(c_out, x) * working(prediction)).to(x.dtype)

    def prediction_from_denoised(self, denoised: Rows, x: Rows, sigma: Sigmas) -> Rows:
        """What the network must have said; sigma > 0."""
        c_skip, c_out = self._scales(sigma)
        return ((working(denoised) - per_row(c_skip, x) * working(x)) / per_row(c_out, x)).to(x.dtype)

    def target(self, x0: Rows, noise: Rows, sigma: Sigmas) -> Rows:
        """What the network should say."""
        x = working(x0) + per_row(sigma, x0) * working(noise)
        return self.prediction_from_denoised(working(x0), x, sigma).to(x0.dtype)

    def _scales(self, sigma: Sigmas) -> tuple[Sigmas, Sigmas]:
        data = self.path.sigma_data
        c_out = sigma * data * self.path.input_scale(sigma)
        return data**2 / (data**2 + sigma**2), -c_out if self.v else c_out


Parameterization = Epsilon | VPrediction | XPrediction | Velocity | EDMPrediction

PARAMETERIZATIONS: dict[str, Parameterization] = {
    "epsilon": Epsilon(),
    "v": VPrediction(),
    "x0": XPrediction(),
    "velocity": Velocity(),
    "edm": EDMPrediction(),
    "edm_v": EDMPrediction(v=True),
}


def find_parameterization(name: str) -> Parameterization:
    """The parameterization called `name`. Errors: `InvalidInput` with the nearest names."""
    return look_up(PARAMETERIZATIONS, name, "parameterization")


def _denoised_along_noise(prediction: Tensor, x: Tensor, sigma: Sigmas) -> Tensor:
    return (working(x) - per_row(sigma, x) * working(prediction)).to(x.dtype)


def _noise_direction(denoised: Tensor, x: Tensor, sigma: Sigmas) -> Tensor:
    return ((working(x) - working(denoised)) / per_row(sigma, x)).to(x.dtype)
