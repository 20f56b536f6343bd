"""Kinds of request, end to end: the latents and pictures that diffusers' pipelines make from the same noise."""

from functools import cache

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tests.few import few
from tests.golden.drawn import assert_same, ours, pipeline_of, theirs
from tests.golden.pipelines import REFINER
from tests.services import service_of

SAME_STEPS = 1e-5
"""Of the largest value, in float32: the same operations, and steps in which their roundings grow."""

STEPS, SIDE, FACTOR, SEED = 6, 32, 2, 5
DRAWN = {"steps": STEPS, "guidance_scale": 5.0, "seed": SEED, "sampler": "ddim", "schedule": "ddim"}
THEIRS = {"num_inference_steps": STEPS, "guidance_scale": 5.0}
"""The same in diffusers' words."""


def photo(seed=0):
    """Smooth colors, so that a picture of it can be told from noise."""
    small = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def half_mask():
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (SIDE // 2, 0, SIDE, SIDE))
    return mask


NEAR = photo(1).convert("L")
"""A depth map, white where things are near."""


def draws(count):
    """What diffusers' pipelines draw one after the other from one generator."""
    generator = torch.Generator().manual_seed(SEED)
    return [torch.randn(1, 4, SIDE // FACTOR, SIDE // FACTOR, generator=generator) for _ in range(count)]


def seeded():
    return torch.Generator().manual_seed(SEED)


@pytest.mark.parametrize("strength", [0.35, 0.6, 1.0])
def test_image_to_image(strength):
    brought = {"image": photo(), "strength": strength}
    reference = pipeline_of(diffusers.StableDiffusionImg2ImgPipeline, "sd1")
    expected = theirs(reference, "red apple", **brought, **THEIRS, generator=seeded())
    found = service_of("sd1").generate("red apple", **brought, latents=draws(2)[1], **DRAWN)
    assert_same(ours(found), expected)


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_inpainting_with_a_plain_model(strength):
    """At strength 1 the first step sees noise outside of the mask too, and no picture in it."""
    reference = pipeline_of(diffusers.StableDiffusionInpaintPipeline, "sd1")
    brought = {"image": photo(), "strength": strength}
    size = {"height": SIDE, "width": SIDE}
    expected = theirs(reference, "red apple", **brought, mask_image=half_mask(), **size, **THEIRS, generator=seeded())
    noise = draws(2)[1]
    found = service_of("sd1").generate("red apple", **brought, mask=half_mask(), paste=False, latents=noise, **DRAWN)
    assert_same(ours(found), expected)


def test_inpainting_with_an_inpainting_model():
    reference = pipeline_of(diffusers.StableDiffusionInpaintPipeline, "inpaint")
    noise = draws(1)[0]
    brought = {"image": photo(), "strength": 1.0, "latents": noise}
    size = {"height": SIDE, "width": SIDE}
    expected = theirs(reference, "red apple", **brought, mask_image=half_mask(), **size, **THEIRS, generator=seeded())
    found = service_of("inpaint").generate("red apple", **brought, mask=half_mask(), paste=False, **DRAWN)
    assert_same(ours(found), expected)


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_an_inpainting_model_without_a_mask_draws_as_with_a_white_one(strength):
    """A1111's white mask; diffusers' pipeline needs the mask itself."""
    reference = pipeline_of(diffusers.StableDiffusionInpaintPipeline, "inpaint")
    white, size = Image.new("L", (SIDE, SIDE), 255), {"height": SIDE, "width": SIDE}
    brought = {"image": photo(), "strength": strength}
    expected = theirs(reference, "red apple", **brought, mask_image=white, **size, **THEIRS, generator=seeded())
    service = service_of("inpaint")
    noise = draws(2)[1] if strength < 1 else draws(1)[0]
    image = {"strength": strength, "image": photo()} if strength < 1 else {"size": (SIDE, SIDE)}  # or from text alone
    assert_same(ours(service.generate("red apple", **image, latents=noise, **DRAWN)), expected)


def test_instruct_pix2pix():
    reference = pipeline_of(diffusers.StableDiffusionInstructPix2PixPipeline, "pix2pix")
    brought = {"image": photo(), "image_guidance_scale": 1.5, "latents": draws(1)[0]}
    expected = theirs(reference, "make it blue", **brought, **THEIRS, generator=seeded())
    assert_same(ours(service_of("pix2pix").generate("make it blue", **brought, **DRAWN)), expected)


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_depth(strength):
    reference = pipeline_of(
        diffusers.StableDiffusionDepth2ImgPipeline, "depth", depth_estimator=None, feature_extractor=None
    )
    brought = {"image": photo(), "strength": strength}
    depth_map = torch.from_numpy(np.array(NEAR, dtype=np.float32))[None] / 255
    expected = theirs(reference, "red apple", **brought, depth_map=depth_map, **THEIRS, generator=seeded())
    given = {**brought, "latents": draws(2)[1], **DRAWN}
    found = service_of("depth").generate("red apple", depth=NEAR, **given)
    assert_same(ours(found), expected)
    inverted = service_of("depth").generate("red apple", depth=ImageOps.invert(NEAR), **given)
    assert inverted.images[0] != found.images[0], "depth is read"


def test_the_refiner_takes_over_from_the_base():
    base = pipeline_of(diffusers.StableDiffusionXLPipeline, "sdxl")
    refiner = pipeline_of(diffusers.StableDiffusionXLImg2ImgPipeline, "refiner", **REFINER)
    noise = draws(1)[0]
    told = {"original_size": (SIDE, SIDE), "target_size": (SIDE, SIDE)}
    size = {"height": SIDE, "width": SIDE}
    half = theirs(base, "red apple", denoising_end=0.7, latents=noise, **size, **told, **THEIRS).latents
    expected = theirs(refiner, "red apple", image=half, denoising_start=0.7, **told, **THEIRS)
    service = service_of("sdxl", refiner="refiner")
    found = service.generate("red apple", latents=noise, refiner_switch=0.7, **DRAWN, size=(SIDE, SIDE))
    assert_same(ours(found), expected)


SOFT = Image.linear_gradient("L").resize((SIDE, SIDE))
BROUGHT = {
    "text": {},
    "image": {"image": photo(), "strength": 0.8},
    "mask": {"image": photo(), "mask": half_mask(), "strength": 1.0},
    "soft mask": {"image": photo(), "mask": SOFT, "strength": 1.0},
    "soft mask and strength": {"image": photo(), "mask": SOFT, "strength": 0.8},
}


@cache
def drawn_alone(brought):
    """The latents of one model from the first step to the last."""
    return service_of("sd1").generate("red apple", **BROUGHT[brought], **DRAWN).latents


@pytest.mark.parametrize("switch", few([0.5, 0.0, 1.0], 1))
@pytest.mark.parametrize("brought", BROUGHT)
def test_a_model_that_takes_over_from_itself_changes_nothing(switch, brought):
    """DDIM has no memory of earlier steps: only what one pass hands to the next could make a difference."""
    relay, expected = service_of("sd1", refiner="sd1"), drawn_alone(brought)
    found = relay.generate("red apple", refiner_switch=switch, **BROUGHT[brought], **DRAWN).latents
    torch.testing.assert_close(found, expected, rtol=0, atol=SAME_STEPS * expected.abs().max().item())
