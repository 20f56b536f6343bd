"""Small autoencoders with random weights."""

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from tests.golden.minis import randomize
from undertow.vae.autoencoder import AutoencoderKL
from undertow.vae.config import VAEConfig

MVAE = VAEConfig(level_channels=(32, 64, 128, 128), sample_size=64)
"""Every structural feature of the published network: 8 pixels per cell, shortcuts, middle attention, both 1x1s."""

SMALL = VAEConfig(level_channels=(16, 32, 32), resnets=1, norm_groups=8)
"""Enough levels for tiles that span two, and quick."""

TINY = VAEConfig(level_channels=(8, 16), resnets=1, norm_groups=4)
"""For float16, whose convolutions on CPU are a hundred times slower."""

PLAIN = replace(TINY, quant_conv=False, post_quant_conv=False, middle_attention=False)


def build(config: VAEConfig, *, seed: int = 0) -> AutoencoderKL:
    vae = AutoencoderKL(config)
    randomize(vae, seed)
    return vae.eval()


@cache
def shared(config: VAEConfig) -> AutoencoderKL:
    """One for all tests, so never changed."""
    return build(config)


def latents_for(config: VAEConfig, height: int, width: int, *, batch: int = 1, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, config.latent_channels, height, width, generator=generator)


def pixels_for(config: VAEConfig, height: int, width: int, *, batch: int = 1, seed: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, config.in_channels, height, width, generator=generator) * 2 - 1
