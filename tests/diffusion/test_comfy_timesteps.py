"""R190: the timesteps that a network receives are ComfyUI's, for every step of the schedules that both have.

ComfyUI's functions are written out here from `comfy/model_sampling.py` and `comfy/samplers.py`.
"""

import math

import pytest
import torch
from torch import Tensor

from undertow.diffusion.grids import sigma_grid
from undertow.diffusion.schedules import NoiseSchedule

SIGMA = 2e-6
"""Relative, of a sigma: ComfyUI's tables are float32."""

TIE = 1e-3

SCHEDULE = NoiseSchedule.scaled_linear()


class Discrete:
    """ComfyUI's ModelSamplingDiscrete with Stable Diffusion's betas."""

    def __init__(self) -> None:
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        products = torch.cumprod(1 - betas, 0)
        self.sigmas = (((1 - products) / products) ** 0.5).float()
        self.log_sigmas = self.sigmas.log()

    def timestep(self, sigma: Tensor) -> Tensor:
        return (sigma.log() - self.log_sigmas[:, None]).abs().argmin(dim=0).view(sigma.shape)

    def sigma(self, timestep: Tensor) -> float:
        t = torch.clamp(timestep.float(), min=0, max=len(self.sigmas) - 1)
        low, high, w = t.floor().long(), t.ceil().long(), t.frac()
        return float(((1 - w) * self.log_sigmas[low] + w * self.log_sigmas[high]).exp())


def normal(s: Discrete, steps: int, *, sgm: bool = False) -> list[float]:
    start, end = s.timestep(s.sigmas[-1:])[0], s.timestep(s.sigmas[:1])[0]
    timesteps = torch.linspace(start, end, steps + 1)[:-1] if sgm else torch.linspace(start, end, steps)
    return [*(s.sigma(t) for t in timesteps), 0.0]


def simple(s: Discrete, steps: int) -> list[float]:
    stride = len(s.sigmas) / steps
    return [*(float(s.sigmas[-(1 + int(x * stride))]) for x in range(steps)), 0.0]


def ddim_uniform(s: Discrete, steps: int) -> list[float]:
    sigmas, x, stride = [0.0], 1, max(len(s.sigmas) // steps, 1)
    while x < len(s.sigmas):
        sigmas.append(float(s.sigmas[x]))
        x += stride
    return sigmas[::-1]


def karras(s: Discrete, steps: int) -> list[float]:
    ramp, rho = torch.linspace(0, 1, steps), 7.0
    low, high = float(s.sigmas[0]) ** (1 / rho), float(s.sigmas[-1]) ** (1 / rho)
    return [*((high + ramp * (low - high)) ** rho).tolist(), 0.0]


def exponential(s: Discrete, steps: int) -> list[float]:
    high, low = math.log(float(s.sigmas[-1])), math.log(float(s.sigmas[0]))
    return [*torch.linspace(high, low, steps).exp().tolist(), 0.0]


SCHEDULERS = {
    "normal": normal,
    "sgm_uniform": lambda s, steps: normal(s, steps, sgm=True),
    "simple": simple,
    "ddim_comfyui": ddim_uniform,
    "karras": karras,
    "exponential": exponential,
}


@pytest.mark.parametrize("steps", [4, 8, 20, 30])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_timesteps_are_comfyuis_at_every_step(name, steps):
    comfy = Discrete()
    theirs = SCHEDULERS[name](comfy, steps)
    ours = sigma_grid(name, SCHEDULE, steps)
    assert ours == pytest.approx(theirs, rel=SIGMA)
    expected = comfy.timestep(torch.tensor(theirs[:-1]))
    sigmas = torch.tensor(ours[:-1], dtype=torch.float64)
    found, between = SCHEDULE.sigma_to_timestep(sigmas, "nearest"), SCHEDULE.sigma_to_timestep(sigmas)
    # Halfway between two trained timesteps, float32's rounding decides there.
    tie = (between.frac() - 0.5).abs() < TIE
    assert torch.equal(found[~tie], expected[~tie].double())
    assert ((found - expected)[tie].abs() <= 1).all()
    assert tie.float().mean() < 0.4
    assert (between - expected).abs().max() <= 0.5 + TIE, "k-diffusion's answer is the fraction beside it (trap T19)"
