"""T2I-Adapter (arXiv:2302.08453): a small network that makes features of a hint once for a picture, which are added to
the activations on their way through the U-Net's encoder.

Parameter names are diffusers'. Where features go in is diffusers' rule too (`UNet2DConditionModel.forward`,
`down_intrablock_additional_residuals`): before a level's downsampler where the level has attention, behind it where it
has none, and what is left behind the middle.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from undertow.adapters.control.config import T2IConfig, T2IStage
from undertow.adapters.control.controlnet import Hint, check_hint
from undertow.errors import ConfigError
from undertow.shapes import FeatureMap
from undertow.unet.conditioning import Residuals
from undertow.unet.config import UNetConfig

Features = Float[Tensor, "batch features rows columns"]


class FeatureBlock(nn.Module):
    """Convolution, ReLU, convolution, residual."""

    def __init__(self, width: int, last_kernel: int):
        super().__init__()
        self.block1 = nn.Conv2d(width, width, 3, padding=1)
        self.block2 = nn.Conv2d(width, width, last_kernel, padding=last_kernel // 2)

    def forward(self, x: FeatureMap) -> FeatureMap:
        return x + self.block2(F.relu(self.block1(x)))


class FeatureStage(nn.Module):
    """One map of features from the one before. light: computed at a quarter of its width."""

    def __init__(self, stage: T2IStage, resnets: int, *, light: bool):
        super().__init__()
        width = stage.outputs // 4 if light else stage.outputs
        self.down = stage.down
        self.in_conv = nn.Conv2d(stage.inputs, width, 1) if light or stage.inputs != stage.outputs else None
        self.resnets = nn.Sequential(*(FeatureBlock(width, 3 if light else 1) for _ in range(resnets)))
        self.out_conv = nn.Conv2d(width, stage.outputs, 1) if light else None

    def forward(self, x: FeatureMap) -> Features:
        hidden = F.avg_pool2d(x, 2, ceil_mode=True) if self.down else x
        if self.in_conv is not None:
            hidden = self.in_conv(hidden)
        hidden = self.resnets(hidden)
        return hidden if self.out_conv is None else self.out_conv(hidden)


class FeaturePyramid(nn.Module):
    """All maps of features of a hint, the finest first."""

    def __init__(self, config: T2IConfig):
        super().__init__()
        light = config.kind == "light"
        self.unshuffle = nn.PixelUnshuffle(config.hint_factor)
        inputs = config.hint_in * config.hint_factor**2
        self.conv_in = None if light else nn.Conv2d(inputs, config.channels[0], 3, padding=1)
        self.body = nn.ModuleList(FeatureStage(stage, config.resnets, light=light) for stage in config.stages())

    def forward(self, hint: Hint) -> list[Float[Tensor, "..."]]:
        hidden = self.unshuffle(hint)
        if self.conv_in is not None:
            hidden = self.conv_in(hidden)
        features = []
        for stage in self.body:
            hidden = stage(hidden)
            features.append(hidden)
        return features


@dataclass(frozen=True, kw_only=True, slots=True)
class Injection:
    """Where one map of features goes in. place: a stored skip, `None` behind the middle. halvings: how often the
    latents were halved there."""

    place: int | None
    width: int
    halvings: int


class T2IAdapter(nn.Module):
    """Features of a hint, at the places of one U-Net's encoder. Errors: `ConfigError` for features that do not fit."""

    def __init__(self, config: T2IConfig, unet: UNetConfig):
        super().__init__()
        self.config = config
        self.adapter = FeaturePyramid(config)
        self._skips = len(unet.skip_shapes(1, 1))
        self._injections = injections(unet)[: len(self.adapter.body)]
        halvings = [sum(one.down for one in config.stages()[: i + 1]) for i in range(len(config.stages()))]
        given = [(stage.outputs, halved) for stage, halved in zip(config.stages(), halvings, strict=True)]
        start = self._injections[0].halvings
        wanted = [(one.width, one.halvings - start) for one in self._injections]
        if given != wanted or len(given) < len(unet.levels):
            rule = f"must give the U-Net's {len(unet.levels)} levels (width, halvings) {wanted}, and gives {given}"
            raise ConfigError("channels", config.channels, rule)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def points(self) -> tuple[str, ...]:
        """Names of what it adds, in the order in which `strength` counts gains."""
        return tuple("middle" if one.place is None else f"running.{one.place}" for one in self._injections)

    def hint_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that a hint must have for latents of this size."""
        for _ in range(self._injections[0].halvings):
            height, width = (height + 1) // 2, (width + 1) // 2
        return height * self.config.hint_factor, width * self.config.hint_factor

    def forward(self, hint: Hint) -> Residuals:
        """What to add for a hint in [0, 1], unscaled: `running`, and in the XL form `middle`.

        Errors: `InvalidInput`, as for a ControlNet's hint.
        """
        check_hint(hint, self.config.hint_in, self.config.hint_factor, self.dtype)
        running: list[Features | None] = [None] * self._skips
        middle = None
        for one, feature in zip(self._injections, self.adapter(hint), strict=True):
            if one.place is None:
                middle = feature
            else:
                running[one.place] = feature
        return Residuals(running=tuple(running), middle=middle)


def injections(unet: UNetConfig) -> tuple[Injection, ...]:
    """One for each level, and one behind the middle."""
    found, stored, last = [], 0, len(unet.levels) - 1
    for index, level in enumerate(unet.levels):
        stored += level.resnets
        downsampler = int(index < last)
        behind = downsampler if level.attention is None else 0
        found.append(Injection(place=stored + behind, width=level.channels, halvings=index + behind))
        stored += downsampler
    return (*found, Injection(place=None, width=unet.levels[-1].channels, halvings=last))
