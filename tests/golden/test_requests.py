"""Kinds of request, end to end: the pictures that diffusers' pipelines make from the same noise."""

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import undertow
from tests.golden.pipelines import SCHEDULE, save_pipeline

LEVELS = 2
"""Of 255: what the issue asks for."""

SAME_STEPS = 1e-5
"""Of the largest value, in float32: the same operations, and ten steps in which their roundings grow."""

STEPS, SIDE, FACTOR, SEED = 10, 32, 2, 5
DRAWN = {"steps": STEPS, "guidance_scale": 5.0, "seed": SEED, "sampler": "ddim", "schedule": "ddim"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(family):
        if family not in made:
            made[family] = save_pipeline(family, tmp_path_factory.mktemp(family) / "pipeline")
        return made[family]

    return folder


def pipeline_of(kind, folder, **parts):
    pipeline = kind.from_pretrained(folder, **parts)
    pipeline.scheduler = diffusers.DDIMScheduler(
        **SCHEDULE, timestep_spacing="leading", steps_offset=1, clip_sample=False, set_alpha_to_one=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


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


def assert_same_picture(ours, theirs):
    difference = np.abs(np.asarray(ours, dtype=int) - np.asarray(theirs, dtype=int))
    assert difference.max() <= LEVELS
    assert np.asarray(ours).std() > 3, "a flat picture compares nothing"


@pytest.mark.parametrize("strength", [0.35, 0.6, 1.0])
def test_image_to_image(folders, strength):
    reference = pipeline_of(diffusers.StableDiffusionImg2ImgPipeline, folders("sd1"))
    generator = torch.Generator().manual_seed(SEED)
    theirs = reference(
        "red apple",
        image=photo(),
        strength=strength,
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        generator=generator,
    ).images[0]
    _, noise = draws(2)
    service = undertow.load(folders("sd1"), dtype=torch.float32)
    ours = service.generate("red apple", image=photo(), strength=strength, latents=noise, **DRAWN).images[0]
    assert_same_picture(ours, theirs)


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_inpainting_with_a_plain_model(folders, strength):
    reference = pipeline_of(diffusers.StableDiffusionInpaintPipeline, folders("sd1"))
    theirs = reference(
        "red apple",
        image=photo(),
        mask_image=half_mask(),
        height=SIDE,
        width=SIDE,
        strength=strength,
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(SEED),
    ).images[0]
    _, noise = draws(2)
    service = undertow.load(folders("sd1"), dtype=torch.float32)
    ours = service.generate(
        "red apple", image=photo(), mask=half_mask(), strength=strength, paste=False, latents=noise, **DRAWN
    ).images[0]
    assert_same_picture(ours, theirs)


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_inpainting_shows_the_network_what_diffusers_shows(folders, strength):
    """Latents, not 8 bits: at strength 1 the first step sees noise outside of the mask too, and no picture in it."""
    reference = pipeline_of(diffusers.StableDiffusionInpaintPipeline, folders("sd1"))
    theirs = reference(
        "red apple",
        image=photo(),
        mask_image=half_mask(),
        height=SIDE,
        width=SIDE,
        strength=strength,
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(SEED),
        output_type="latent",
    ).images
    _, noise = draws(2)
    service = undertow.load(folders("sd1"), dtype=torch.float32)
    ours = service.generate("red apple", image=photo(), mask=half_mask(), strength=strength, latents=noise, **DRAWN)
    torch.testing.assert_close(ours.latents, theirs, rtol=0, atol=SAME_STEPS * theirs.abs().max().item())


def test_inpainting_with_an_inpainting_model(folders):
    reference = pipeline_of(diffusers.StableDiffusionInpaintPipeline, folders("inpaint"))
    noise = draws(1)[0]
    theirs = reference(
        "red apple",
        image=photo(),
        mask_image=half_mask(),
        height=SIDE,
        width=SIDE,
        strength=1.0,
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        latents=noise,
        generator=torch.Generator().manual_seed(SEED),
    ).images[0]
    service = undertow.load(folders("inpaint"), dtype=torch.float32)
    ours = service.generate(
        "red apple", image=photo(), mask=half_mask(), strength=1.0, paste=False, latents=noise, **DRAWN
    ).images[0]
    assert_same_picture(ours, theirs)


def test_instruct_pix2pix(folders):
    reference = pipeline_of(diffusers.StableDiffusionInstructPix2PixPipeline, folders("pix2pix"))
    noise = draws(1)[0]
    theirs = reference(
        "make it blue",
        image=photo(),
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        image_guidance_scale=1.5,
        latents=noise,
        generator=torch.Generator().manual_seed(SEED),
    ).images[0]
    service = undertow.load(folders("pix2pix"), dtype=torch.float32)
    ours = service.generate("make it blue", image=photo(), latents=noise, image_guidance_scale=1.5, **DRAWN).images[0]
    assert_same_picture(ours, theirs)


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_depth(folders, strength):
    parts = pipeline_of(diffusers.StableDiffusionPipeline, folders("depth"))
    wanted = {name: getattr(parts, name) for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    reference = diffusers.StableDiffusionDepth2ImgPipeline(**wanted, depth_estimator=None, feature_extractor=None)
    reference.set_progress_bar_config(disable=True)
    theirs = reference(
        "red apple",
        image=photo(),
        depth_map=torch.from_numpy(np.array(NEAR, dtype=np.float32))[None] / 255,
        strength=strength,
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(SEED),
    ).images[0]
    _, noise = draws(2)
    service = undertow.load(folders("depth"), dtype=torch.float32)
    brought = {"image": photo(), "depth": NEAR, "strength": strength, "latents": noise}
    ours = service.generate("red apple", **brought, **DRAWN).images[0]
    assert_same_picture(ours, theirs)
    inverted = service.generate("red apple", **{**brought, "depth": ImageOps.invert(NEAR)}, **DRAWN).images[0]
    assert inverted != ours, "depth is read"


def test_the_refiner_takes_over_from_the_base(folders):
    base = pipeline_of(diffusers.StableDiffusionXLPipeline, folders("sdxl"))
    refiner = pipeline_of(diffusers.StableDiffusionXLImg2ImgPipeline, folders("refiner"))
    noise = draws(1)[0]
    size = {"height": SIDE, "width": SIDE, "original_size": (SIDE, SIDE), "target_size": (SIDE, SIDE)}
    shared = {"num_inference_steps": STEPS, "guidance_scale": 5.0}
    half = base("red apple", denoising_end=0.7, output_type="latent", latents=noise, **size, **shared).images
    size = {"original_size": (SIDE, SIDE), "target_size": (SIDE, SIDE)}
    theirs = refiner("red apple", image=half, denoising_start=0.7, **size, **shared).images[0]
    service = undertow.load(folders("sdxl"), dtype=torch.float32, refiner=folders("refiner"))
    ours = service.generate("red apple", latents=noise, refiner_switch=0.7, **DRAWN, size=(SIDE, SIDE)).images[0]
    assert_same_picture(ours, theirs)


SOFT = Image.linear_gradient("L").resize((SIDE, SIDE))


@pytest.mark.parametrize("switch", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "brought",
    [
        {},
        {"image": photo(), "strength": 0.8},
        {"image": photo(), "mask": half_mask(), "strength": 1.0},
        {"image": photo(), "mask": SOFT, "strength": 1.0},
        {"image": photo(), "mask": SOFT, "strength": 0.8},
    ],
    ids=["text", "image", "mask", "soft mask", "soft mask and strength"],
)
def test_a_model_that_takes_over_from_itself_changes_nothing(folders, switch, brought):
    """DDIM has no memory of earlier steps: only what one pass hands to the next could make a difference."""
    alone = undertow.load(folders("sd1"), dtype=torch.float32)
    relay = undertow.load(folders("sd1"), dtype=torch.float32, refiner=folders("sd1"))
    expected = alone.generate("red apple", **brought, **DRAWN).latents
    found = relay.generate("red apple", refiner_switch=switch, **brought, **DRAWN).latents
    torch.testing.assert_close(found, expected, rtol=0, atol=SAME_STEPS * expected.abs().max().item())
