"""Latent spaces: how the numbers that an autoencoder makes become those that a U-Net was trained on, and a preview.

A U-Net wants latents of about unit variance; each family divides by its own constants. `vae/latent_values.py` applies
them. The records here import no torch, because architectures are read without it.
"""

from dataclasses import dataclass

from undertow.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class PreviewFactors:
    """A linear map from latents, as the U-Net sees them, to red, green and blue in [-1, 1]: one row per channel.

    Least-squares fits by the community, as ComfyUI has them in comfy/latent_formats.py.
    """

    weight: tuple[tuple[float, float, float], ...]
    bias: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentSpace:
    """The affine map between an autoencoder's latents and a U-Net's: `to_model(z) = (z - offset) · scale / deviation`.

    offset is `mean` per channel where the family has one, else `shift`; deviation is `std` per channel, else 1.
    """

    scale: float
    shift: float = 0.0
    channels: int = 4
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    preview_factors: PreviewFactors | None = None

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ConfigError("latent_space.scale", self.scale, "must be positive")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and len(values) != self.channels:
                raise ConfigError(f"latent_space.{name}", values, f"needs one number per channel, {self.channels}")
        if self.mean is not None and self.shift:
            raise ConfigError("latent_space.shift", self.shift, "must be 0 when there is a mean per channel")
        if self.std is not None and not min(self.std) > 0:
            raise ConfigError("latent_space.std", self.std, "must be positive")
        if self.preview_factors is not None and len(self.preview_factors.weight) != self.channels:
            raise ConfigError(
                "latent_space.preview_factors", self.preview_factors, f"need one row per channel, {self.channels}"
            )


SD_PREVIEW = PreviewFactors(
    weight=(
        (0.3512, 0.2297, 0.3227),
        (0.3250, 0.4974, 0.2350),
        (-0.2829, 0.1762, 0.2721),
        (-0.2120, -0.2616, -0.7177),
    )
)

SDXL_PREVIEW = PreviewFactors(
    weight=(
        (0.3651, 0.4232, 0.4341),
        (-0.2533, -0.0042, 0.1068),
        (0.1076, 0.1111, -0.0362),
        (-0.3165, -0.2492, -0.2188),
    ),
    bias=(0.1084, -0.0175, -0.0011),
)

SD = LatentSpace(scale=0.18215, preview_factors=SD_PREVIEW)
"""SD1 and SD2: one over the standard deviation of latents over LAION (arXiv:2112.10752, section D.1)."""

SDXL = LatentSpace(scale=0.13025, preview_factors=SDXL_PREVIEW)
"""SDXL base and refiner, whose autoencoder was trained anew (arXiv:2307.01952, section 2.4)."""

UPSCALER_X4 = LatentSpace(scale=0.08333)
"""Stable Diffusion x4 upscaler."""

PLAYGROUND_V25 = LatentSpace(
    scale=0.5,
    mean=(-1.6574, 1.886, -1.383, 2.5155),
    std=(8.4927, 5.9022, 6.5498, 5.2299),
    preview_factors=SDXL_PREVIEW,
)
"""Playground v2.5: SDXL's autoencoder, normalized per channel to a standard deviation of 0.5 (arXiv:2402.17245)."""

LATENT_SPACES = {"sd": SD, "sdxl": SDXL, "upscaler_x4": UPSCALER_X4, "playground_v25": PLAYGROUND_V25}
"""Published latent spaces by name."""
