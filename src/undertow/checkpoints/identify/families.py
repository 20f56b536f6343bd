"""The published architectures that undertow runs, and how a derived architecture is recognized as one of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, NamedTuple

from undertow.checkpoints.keymap.prefixes import TextKind
from undertow.unet.config import CrossAttention, Middle, TextTime, UNetConfig

FamilyName = Literal["sd1", "sd2", "sdxl", "sdxl_refiner", "pixels", "custom"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One published architecture. title: what its authors call it."""

    name: FamilyName
    variant: str
    title: str
    config: Callable[[], UNetConfig]


FAMILIES = (
    Family(name="sd1", variant="base", title="Stable Diffusion 1.x", config=UNetConfig.sd15),
    Family(name="sd1", variant="inpaint", title="Stable Diffusion 1.5 inpainting", config=UNetConfig.sd15_inpaint),
    Family(name="sd1", variant="pix2pix", title="InstructPix2Pix", config=UNetConfig.instruct_pix2pix),
    Family(name="sd1", variant="lcm", title="LCM of Stable Diffusion 1.5", config=UNetConfig.lcm_sd15),
    Family(name="sd2", variant="base", title="Stable Diffusion 2.x", config=UNetConfig.sd21),
    Family(name="sd2", variant="inpaint", title="Stable Diffusion 2 inpainting", config=UNetConfig.sd2_inpaint),
    Family(name="sdxl", variant="base", title="Stable Diffusion XL", config=UNetConfig.sdxl),
    Family(name="sdxl", variant="inpaint", title="Stable Diffusion XL inpainting", config=UNetConfig.sdxl_inpaint),
    Family(name="sdxl", variant="lcm", title="LCM of Stable Diffusion XL", config=UNetConfig.lcm_sdxl),
    Family(name="sdxl", variant="ssd_1b", title="Segmind SSD-1B", config=UNetConfig.ssd_1b),
    Family(name="sdxl", variant="vega", title="Segmind Vega", config=UNetConfig.vega),
    Family(name="sdxl_refiner", variant="base", title="Stable Diffusion XL refiner", config=UNetConfig.sdxl_refiner),
)


ENCODERS: Mapping[FamilyName, tuple[TextKind, ...]] = {
    "sd1": ("clip_l",),
    "sd2": ("openclip_h",),
    "sdxl": ("clip_l", "openclip_g"),
    "sdxl_refiner": ("openclip_g",),
    "pixels": (),
    "custom": (),
}
"""The text encoders of each family, in the order in which their outputs are concatenated."""


def find_family(config: UNetConfig) -> Family | None:
    """The published architecture equal to `config` in everything that tensors tell; `None` for any other."""
    return _families_by_structure().get(_what_tensors_tell(config))


@cache
def _families_by_structure() -> Mapping[UNetConfig, Family]:
    return {_what_tensors_tell(family.config()): family for family in FAMILIES}


def family_of_structure(config: UNetConfig) -> FamilyName:
    """The family that an architecture of unpublished widths is built like."""
    match config:
        case UNetConfig(context_dim=None):
            return "pixels"
        case UNetConfig(added=TextTime(scored=scored)):
            return "sdxl_refiner" if scored else "sdxl"
        case UNetConfig(linear_projection=True):
            return "sd2"
        case _:
            return "sd1"


class FamilyMatch(NamedTuple):
    """What an architecture is: a published one, or one built like a family; evidence: what tells."""

    family: FamilyName
    variant: str
    title: str
    evidence: str


def describe_family(config: UNetConfig) -> FamilyMatch:
    """What an architecture is, by name."""
    return describe_match(config, find_family(config))


def describe_match(config: UNetConfig, published: Family | None) -> FamilyMatch:
    """What an architecture is that was looked up already. published: the result of `find_family`."""
    text = "no text" if config.context_dim is None else f"text {config.context_dim} wide"
    channels = "/".join(map(str, config.block_out_channels))
    evidence = f"{text}, {config.in_channels} input channels, levels of {channels} channels"
    if published is not None:
        return FamilyMatch(published.name, published.variant, published.title, evidence)
    family = family_of_structure(config)
    like = "a pixel U-Net" if family == "pixels" else f"a U-Net built like {family}"
    return FamilyMatch(family, "custom", f"{like}, with widths of its own", evidence)


def _what_tensors_tell(config: UNetConfig) -> UNetConfig:
    """The config in one spelling of depths, without what the shapes do not show."""
    return replace(
        config,
        levels=tuple(
            replace(
                level,
                attention=CrossAttention(heads=1, depth=level.encoder_depths(), decoder_depth=level.decoder_depths())
                if isinstance(level.attention, CrossAttention)
                else level.attention,
            )
            for level in config.levels
        ),
        middle=_one_head(config.middle),
        sample_size=1,
        upcast_attention=False,
        max_timestep=None,
    )


def _one_head(middle: Middle) -> Middle:
    match middle.attention:
        case CrossAttention(depth=depth):
            return replace(middle, attention=CrossAttention(heads=1, depth=depth))
        case _:
            return middle
