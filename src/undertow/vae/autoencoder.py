"""The KL-regularized autoencoder between pixels and latents (arXiv:1312.6114; arXiv:2112.10752, section 3.1)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from undertow.attention.chosen import kernel_named
from undertow.attention.kernel import AttentionKernel
from undertow.nn.adaptable import Conv2d
from undertow.nn.normalization import GroupNorm
from undertow.shapes import FeatureMap, Latents
from undertow.vae.blocks import DownBlock, MiddleBlock, NewFeatureMap, UpBlock, in_query_chunks
from undertow.vae.checks import check_dtype, check_latents, check_pixels
from undertow.vae.config import NORM_EPS, VAEConfig

Pixels = Float[Tensor, "batch colors rows columns"]
"""Pictures in [-1, 1]; a decoder may leave that range a little."""

Moments = Float[Tensor, "batch moments height width"]
"""Mean and logarithm of the variance, one after the other at axis 1."""


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """The distribution over latents that the encoder gives: independent normals."""

    mean: Latents
    logvar: Latents

    @classmethod
    def from_moments(cls, moments: Moments) -> "Posterior":
        """logvar is cut to [-30, 20], as CompVis does, so that its exponential stays finite."""
        mean, logvar = moments.chunk(2, dim=1)
        return cls(mean=mean, logvar=logvar.clamp(-30.0, 20.0))

    @property
    def std(self) -> Latents:
        return torch.exp(0.5 * self.logvar)

    def mode(self) -> Latents:
        """The most probable latents: the mean."""
        return self.mean

    def sample(self, noise: Latents) -> Latents:
        """mean + std · noise, with the caller's standard normal noise."""
        return self.mean + self.std * noise.to(device=self.mean.device, dtype=self.mean.dtype)


class Encoder(nn.Module):
    """Pixels to moments, halving the resolution `levels - 1` times."""

    def __init__(self, config: VAEConfig, kernel: AttentionKernel):
        super().__init__()
        first, last = config.level_channels[0], config.level_channels[-1]
        self.conv_in = Conv2d(config.in_channels, first, 3, padding=1)
        self.down_blocks = nn.ModuleList(DownBlock(config, index) for index in range(len(config.level_channels)))
        self.mid_block = MiddleBlock(config, kernel)
        self.conv_norm_out = GroupNorm(config.norm_groups, last, NORM_EPS)
        self.conv_out = Conv2d(last, 2 * config.latent_channels, 3, padding=1)

    def forward(self, pixels: Pixels) -> NewFeatureMap:
        x = self.conv_in(pixels)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """Latents to pixels, doubling the resolution `levels - 1` times."""

    def __init__(self, config: VAEConfig, kernel: AttentionKernel):
        super().__init__()
        first, last = config.level_channels[0], config.level_channels[-1]
        self.conv_in = Conv2d(config.latent_channels, last, 3, padding=1)
        self.mid_block = MiddleBlock(config, kernel)
        self.up_blocks = nn.ModuleList(UpBlock(config, index) for index in range(len(config.level_channels)))
        self.conv_norm_out = GroupNorm(config.norm_groups, first, NORM_EPS)
        self.conv_out = Conv2d(first, config.out_channels, 3, padding=1)

    def forward(self, latents: FeatureMap) -> NewFeatureMap:
        x = self.mid_block(self.conv_in(latents))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class AutoencoderKL(nn.Module):
    """Encoder, decoder and the 1x1 convolutions beside them; parameter names are diffusers'.

    `encode` and `decode` compute plainly in the weights' type. `vae.precision` does the same watching for overflow,
    row by row and within a given memory. Latents here are the autoencoder's own: `config.latent_space` scales them.
    """

    def __init__(self, config: VAEConfig, attention: AttentionKernel | None = None):
        super().__init__()
        kernel = in_query_chunks(kernel_named("auto") if attention is None else attention)
        moments = 2 * config.latent_channels
        self.config = config
        self.encoder = Encoder(config, kernel)
        self.decoder = Decoder(config, kernel)
        self.quant_conv = Conv2d(moments, moments, 1) if config.quant_conv else None
        self.post_quant_conv = (
            Conv2d(config.latent_channels, config.latent_channels, 1) if config.post_quant_conv else None
        )

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.conv_in.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.decoder.conv_in.weight.device

    def encode(self, pixels: Pixels) -> Posterior:
        """The distribution over latents of pictures in [-1, 1], whose sides are multiples of `config.factor`.

        Errors: `InvalidInput` for other ranks, channels, sizes and types, and for values that are not finite.
        """
        check_pixels(self.config, pixels)
        check_dtype("pixels", pixels, self.dtype)
        moments = self.encoder(pixels)
        return Posterior.from_moments(moments if self.quant_conv is None else self.quant_conv(moments))

    def decode(self, latents: Latents) -> Pixels:
        """Pictures in about [-1, 1] from unscaled latents of any size.

        Errors: `InvalidInput` for other ranks, channels and types, and for values that are not finite.
        """
        check_latents(self.config, latents)
        check_dtype("latents", latents, self.dtype)
        if self.post_quant_conv is not None:
            # Contiguous, for accuracy: see MiddleBlock.
            latents = self.post_quant_conv(latents).contiguous()
        return self.decoder(latents)
