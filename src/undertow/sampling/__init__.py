"""Sampling algorithms as generators over a denoiser. Start at `protocol`, then `euler`."""

from undertow.sampling.catalogue import SAMPLERS, SamplerEntry, find_sampler, start_sampler
from undertow.sampling.ddim import ddim, ddpm
from undertow.sampling.dpm_solver import dpmpp_2m
from undertow.sampling.euler import euler, euler_a
from undertow.sampling.heun import heun
from undertow.sampling.noise import NoiseSource
from undertow.sampling.protocol import ModelCall, Sampler, SamplerFunction, drive

__all__ = [
    "SAMPLERS",
    "ModelCall",
    "NoiseSource",
    "Sampler",
    "SamplerEntry",
    "SamplerFunction",
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "drive",
    "euler",
    "euler_a",
    "find_sampler",
    "heun",
    "start_sampler",
]
