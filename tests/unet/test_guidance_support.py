"""Which guidance fits which network, refused before anything is run."""

from dataclasses import replace

import pytest

from undertow.diffusion.guidance import (
    ClassifierFree,
    DualGuidance,
    EmbeddedScale,
    Method,
    PerturbedAttention,
    SelfAttention,
    SmoothedEnergy,
)
from undertow.errors import InvalidInput
from undertow.unet.config import UNetConfig
from undertow.unet.free_u import FreeU
from undertow.unet.guidance_support import check_guidance

SD15, SSD = UNetConfig.sd15(), UNetConfig.ssd_1b()


@pytest.mark.parametrize(
    ("config", "methods"),
    [
        (SD15, (ClassifierFree(scale=7.5), PerturbedAttention(scale=3.0), SelfAttention(scale=0.75))),
        (UNetConfig.sdxl(), (SmoothedEnergy(scale=3.0, layers=("mid_block", "down_blocks.2.attentions.1")),)),
        (SSD, (PerturbedAttention(scale=3.0, layers=("up_blocks.0",)),)),
        (UNetConfig.lcm_sd15(), (EmbeddedScale(scale=8.0),)),
        (UNetConfig.instruct_pix2pix(), (DualGuidance(scale=7.5),)),
        (UNetConfig.cifar10(), (PerturbedAttention(scale=3.0),)),
    ],
)
def test_what_fits_is_let_in(config: UNetConfig, methods: tuple[Method, ...]):
    check_guidance(config, methods)


@pytest.mark.parametrize(
    ("config", "method", "message"),
    [
        (SSD, PerturbedAttention(scale=3.0), "layers is 'mid_block', expected a part of down_blocks.1, down_blocks.2"),
        (SSD, SmoothedEnergy(scale=3.0), "layers is 'mid_block'"),
        (SSD, SelfAttention(scale=0.75), "attention in the middle; use PerturbedAttention"),
        (SD15, EmbeddedScale(scale=8.0), "distilled with its guidance scale"),
        (SD15, DualGuidance(scale=7.5), "8 channels wide .*; this one has 4"),
        (UNetConfig.sd15_inpaint(), DualGuidance(scale=7.5), "this one has 9"),
        (replace(SD15, levels=SD15.levels[:1]), FreeU(), "FreeU is keyed by channels, .*; key it by index"),
    ],
)
def test_what_does_not_fit_is_refused(config: UNetConfig, method: Method | FreeU, message: str):
    with pytest.raises(InvalidInput, match=message):
        check_guidance(config, (ClassifierFree(scale=7.5), method))
