"""What a ControlNet and a T2I-Adapter are built from."""

from dataclasses import dataclass
from typing import Literal

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


T2IKind = Literal["full", "light", "xl"]


@dataclass(frozen=True, kw_only=True, slots=True)
class T2IStage:
    """One map of features and what makes it. down: at half the resolution of the one before."""

    inputs: int
    outputs: int
    down: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class T2IConfig:
    """A T2I-Adapter's architecture (arXiv:2302.08453), in diffusers' words.

    channels: widths of the stages; "light" repeats the last one. resnets: ResBlocks of a stage. hint_in: channels of
    the hint. hint_factor: pixels to each cell of the first map, in each direction. Errors: `ConfigError`.
    """

    kind: T2IKind = "full"
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    resnets: int = 2
    hint_in: int = 3
    hint_factor: int = 8

    def __post_init__(self) -> None:
        for name in ("resnets", "hint_in", "hint_factor"):
            if getattr(self, name) < 1:
                raise ConfigError(name, getattr(self, name), "must be at least 1")
        if not self.channels or min(self.channels) < 1:
            raise ConfigError("channels", self.channels, "needs at least one width, each at least 1")
        if self.kind == "light" and any(width % 4 for width in self.channels):
            raise ConfigError(
                "channels", self.channels, "must be multiples of 4: a light stage is a quarter as wide inside"
            )
        if self.kind == "xl" and (len(self.channels) != 4 or self.channels[2] != self.channels[3]):
            raise ConfigError("channels", self.channels, "must be four in the XL form, the last two equal")

    def stages(self) -> tuple[T2IStage, ...]:
        """One for each map of features, the finest first."""
        channels = self.channels
        if self.kind == "light":
            inputs = (self.hint_in * self.hint_factor**2, *channels)
            outputs = (*channels, channels[-1])
        else:
            inputs, outputs = (channels[0], *channels[:-1]), channels
        halved = (2,) if self.kind == "xl" else range(1, len(outputs))
        return tuple(
            T2IStage(inputs=wide, outputs=narrow, down=index in halved)
            for index, (wide, narrow) in enumerate(zip(inputs, outputs, strict=True))
        )
