"""What a ControlNet and a T2I-Adapter are built from."""

from dataclasses import dataclass

from undertow.errors import ConfigError
from undertow.unet.config import UNetConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlNetConfig:
    """A ControlNet's architecture (arXiv:2302.05543).

    unet: of its encoder and middle; what it says of a decoder means nothing here. Its encoder may have less attention
    than the U-Net that it controls (SDXL's mid and small ControlNets). hint_channels: widths of the hint embedder, each
    after the first at half the resolution of the one before. hint_in: channels of the hint. global_pool: residuals
    count by their mean over the picture (shuffle). bgr: it was trained on hints with blue first. Errors: `ConfigError`.
    """

    unet: UNetConfig
    hint_channels: tuple[int, ...] = (16, 32, 96, 256)
    hint_in: int = 3
    global_pool: bool = False
    bgr: bool = False

    def __post_init__(self) -> None:
        if not self.hint_channels or min(self.hint_channels) < 1:
            raise ConfigError("hint_channels", self.hint_channels, "needs at least one width, each at least 1")
        if self.hint_in < 1:
            raise ConfigError("hint_in", self.hint_in, "must be at least 1")
        if self.unet.guidance_dim is not None:
            rule = "must be None: a ControlNet takes no guidance"
            raise ConfigError("unet.guidance_dim", self.unet.guidance_dim, rule)
