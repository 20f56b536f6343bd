"""The loop of one request: its sampler asks, the U-Net answers for all branches at once, guidance combines."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from undertow.diffusion.denoiser import Denoiser
from undertow.diffusion.parameterizations import Parameterization
from undertow.diffusion.schedules import Schedule, TimestepMap
from undertow.engine.conditioning import Branches
from undertow.engine.events import Observer, StepEvent
from undertow.engine.request import GenerationRequest
from undertow.engine.watch import Watch
from undertow.sampling.catalogue import start_sampler
from undertow.sampling.noise import NoiseSource
from undertow.sampling.protocol import drive
from undertow.shapes import Latents
from undertow.unet.conditioning import Conditioning, concatenate
from undertow.unet.unet import UNet


@dataclass(kw_only=True)
class Sampling:
    """One request on its way from noise to latents. branches: of every step."""

    unet: UNet
    parameterization: Parameterization
    schedule: Schedule
    request: GenerationRequest
    branches: Sequence[Branches]
    sigmas: Sequence[float]
    watch: Watch
    observe: Observer

    def __post_init__(self) -> None:
        self._step = -1
        self._denoised: Tensor | None = None
        timestep_map: TimestepMap = "nearest" if self.request.timestep_map == "nearest" else "interpolated"
        self._denoiser = Denoiser(
            network=self._predict,
            parameterization=self.parameterization,
            schedule=self.schedule,
            timestep_map=timestep_map,
            network_dtype=self.unet.dtype,
        )

    def run(self, latents: Latents, noise: NoiseSource) -> Latents:
        """From latents at the first sigma to latents at the last."""
        path = self.schedule.path
        sampler = start_sampler(self.request.sampler, latents, self.sigmas, path=path, noise=noise)
        latents = drive(sampler, self._denoise)
        self.watch.see(f"step_{self._step}_latents", latents)
        return latents

    def _denoise(self, x: Tensor, sigma: float) -> Tensor:
        """The guided estimate: u + s Σ w (c - u) over the prompts of this step (arXiv:2206.01714, Eq. 11)."""
        self._enter_step(x, sigma)
        branches = self.branches[self._step]
        rows = [conditioning.repeat(len(x)) for conditioning in branches.rows]
        sigmas = torch.full((len(x) * len(rows),), sigma, dtype=torch.float64)
        denoised = self._denoiser(torch.cat([x] * len(rows)), sigmas, concatenate(rows)).chunk(len(rows))
        self._denoised = self._combine(branches, denoised)
        return self._denoised

    def _combine(self, branches: Branches, denoised: Sequence[Tensor]) -> Tensor:
        if branches.unconditional is None:
            return denoised[0]
        unconditional, *wanted = denoised
        weights = [weight for _, weight in branches.wanted]
        direction = sum(
            (weight * (part - unconditional) for weight, part in zip(weights, wanted, strict=True)),
            torch.zeros_like(unconditional),
        )
        return unconditional + self.request.guidance_scale * direction

    def _predict(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        with self.watch.stage("unet"):
            prediction = self.unet(latents, timesteps, conditioning)
        for name, part in zip(self.branches[self._step].names, prediction.split(self.request.count), strict=True):
            self.watch.see(f"step_{self._step}_noise_{name}", part)
        return prediction

    def _enter_step(self, x: Tensor, sigma: float) -> None:
        """Samplers may evaluate twice in a step; a step begins when its sigma is reached."""
        step = max(index for index, start in enumerate(self.sigmas[:-1]) if start >= sigma or index == 0)
        if step == self._step:
            return
        if self._step >= 0:
            self.watch.see(f"step_{self._step}_latents", x)
        self._step = step
        self.observe(StepEvent(step=step, steps=len(self.sigmas) - 1, sigma=sigma, denoised=self._denoised))
