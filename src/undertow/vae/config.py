"""What an autoencoder is built from."""

from dataclasses import dataclass

from undertow.errors import ConfigError
from undertow.limits import LAYERS, WIDTH
from undertow.vae.latent_space import SD, SDXL, LatentSpace

NORM_EPS = 1e-6
"""Added to every GroupNorm's variance; the same in all published autoencoders, where the U-Nets have 1e-5."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VAEConfig:
    """The architecture of a KL-regularized autoencoder (arXiv:2112.10752, appendix E.2, with f = 2^(levels - 1)).

    level_channels: from full resolution to the lowest. resnets: ResBlocks per level of the encoder; the decoder has one
    more (R152). middle_attention: self-attention at the lowest resolution. quant_conv, post_quant_conv: the 1x1
    convolutions behind the encoder and before the decoder. force_upcast: activations leave float16's range (SDXL's
    original weights, trap T16). sample_size: pixels of a side that it was trained at.
    Errors: `ConfigError` names the field and the rule it breaks.
    """

    level_channels: tuple[int, ...] = (128, 256, 512, 512)
    resnets: int = 2
    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    norm_groups: int = 32
    middle_attention: bool = True
    quant_conv: bool = True
    post_quant_conv: bool = True
    force_upcast: bool = False
    sample_size: int = 512
    latent_space: LatentSpace = SD

    def __post_init__(self) -> None:
        for name in ("resnets", "in_channels", "out_channels", "latent_channels", "norm_groups", "sample_size"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(name, value, "must be at least 1")
            if value > WIDTH.most:
                raise ConfigError(name, value, WIDTH.rule)
        if self.layers > LAYERS.most:
            raise ConfigError("layers", self.layers, LAYERS.rule)
        if not self.level_channels:
            raise ConfigError("level_channels", self.level_channels, "needs at least one level")
        for channels in self.level_channels:
            if channels > WIDTH.most:
                raise ConfigError("level_channels", self.level_channels, WIDTH.rule)
            if channels < 1 or channels % self.norm_groups:
                raise ConfigError(
                    "level_channels",
                    self.level_channels,
                    f"must be positive multiples of norm_groups = {self.norm_groups}",
                )
        if self.latent_space.channels != self.latent_channels:
            raise ConfigError(
                "latent_space.channels", self.latent_space.channels, f"must be latent_channels = {self.latent_channels}"
            )

    @property
    def layers(self) -> int:
        """ResBlocks of the encoder and the decoder, two in the middle of each."""
        return len(self.level_channels) * (2 * self.resnets + 1) + 4

    @property
    def factor(self) -> int:
        """Pixels per latent cell, along each side."""
        return 2 ** (len(self.level_channels) - 1)

    @classmethod
    def sd(cls) -> "VAEConfig":
        """SD1 and SD2."""
        return cls()

    @classmethod
    def sdxl(cls) -> "VAEConfig":
        """SDXL base and refiner: the same network, other weights, other scale."""
        return cls(sample_size=1024, force_upcast=True, latent_space=SDXL)
