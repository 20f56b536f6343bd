"""Sampling algorithms as generators over a denoiser. Start at `protocol`, then `euler`; `catalogue` lists them all."""

from undertow.sampling.adams import ipndm, ipndm_v, lms, pndm
from undertow.sampling.catalogue import ALIASES, SAMPLERS, SamplerEntry, canonical_name, find_sampler, start_sampler
from undertow.sampling.ddim import ddim, ddim_inverse, ddpm
from undertow.sampling.dpm2 import dpm2, dpm2_a
from undertow.sampling.dpm_solver import dpmpp_2m, dpmpp_2s, dpmpp_2s_a, dpmpp_3m
from undertow.sampling.entry import SamplerFunction
from undertow.sampling.euler import euler, euler_a
from undertow.sampling.flow import along_flow
from undertow.sampling.heun import heun, heunpp2
from undertow.sampling.noise import NoiseSource
from undertow.sampling.options import NumberRange, Option
from undertow.sampling.protocol import ModelCall, Sampler, answered, drive

__all__ = [
    "ALIASES",
    "SAMPLERS",
    "ModelCall",
    "NoiseSource",
    "NumberRange",
    "Option",
    "Sampler",
    "SamplerEntry",
    "SamplerFunction",
    "along_flow",
    "answered",
    "canonical_name",
    "ddim",
    "ddim_inverse",
    "ddpm",
    "dpm2",
    "dpm2_a",
    "dpmpp_2m",
    "dpmpp_2s",
    "dpmpp_2s_a",
    "dpmpp_3m",
    "drive",
    "euler",
    "euler_a",
    "find_sampler",
    "heun",
    "heunpp2",
    "ipndm",
    "ipndm_v",
    "lms",
    "pndm",
    "start_sampler",
]
