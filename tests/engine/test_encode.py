"""From a request to its passes: where each starts, along which levels it goes, and what is decided before any step."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from tests.adapters.lora.files import kohya, layers_of, write
from tests.engine.test_denoise import photo, right_half
from tests.golden.pipelines import SCHEDULE
from tests.services import service_of
from undertow import Adapter, GenerationRequest, HighResolution, InvalidInput, Region, UNet, Views
from undertow.adapters.manager import AdapterManager
from undertow.diffusion.grids import sigma_grid
from undertow.engine.debug import Debug
from undertow.engine.encode import Encoded, encode
from undertow.engine.passes import Continue, FromNoise, FromPicture, Upscaled
from undertow.engine.watch import Watch
from undertow.errors import MissingComponent
from undertow.pictures.pixels import to_pixels
from undertow.schedulers.betas import LinearBetas

DDIM = {"sampler": "ddim", "schedule": "ddim"}
"""With diffusers' timesteps: 100 i + 1 for ten steps."""


def encoded(prompt: str = "red apple", *, family: str = "sd1", refiner: str | None = None, **settings) -> Encoded:
    service = service_of(family, refiner=refiner)
    given = {name: settings.pop(name) for name in ("latents", "manager", "watch") if name in settings}
    given = {"watch": Watch(), "manager": service.adapters, **given}
    request = GenerationRequest(prompt=prompt, **settings)
    return encoded_of(service.model, request, refiner=service.refiner, **given)


def encoded_of(*arguments, **named) -> Encoded:
    """All parts of the encoding, one after the other."""
    parts = encode(*arguments, **named)
    while True:
        try:
            next(parts)
        except StopIteration as finished:
            return finished.value


def starts(made: Encoded) -> list[type]:
    return [type(one.start) for one in made.passes]


def steps(made: Encoded) -> list[int]:
    return [one.steps for one in made.passes]


@pytest.mark.parametrize("switch", [0.0, 0.3, 0.7, 0.799, 0.8, 0.999, 1.0])
def test_the_refiner_takes_over_where_diffusers_lets_it(switch):
    """denoising_end: the base model draws the timesteps that are not below round(1000 (1 - share)). At 0.799
    and 0.999 one stands exactly there."""
    scheduler = DDIMScheduler(**SCHEDULE, timestep_spacing="leading", steps_offset=1)
    scheduler.set_timesteps(10)
    cutoff = round(1000 - switch * 1000)
    base = sum(timestep >= cutoff for timestep in scheduler.timesteps.tolist())
    made = encoded(refiner="sd1", refiner_switch=switch, steps=10, **DDIM)
    assert steps(made) == ([base, 10 - base] if base < 10 else [10])
    assert (switch in (0.799, 0.999)) == (cutoff in scheduler.timesteps.tolist())
    whole = encoded(steps=10, **DDIM).passes[0].sigmas
    assert made.passes[0].sigmas == whole[: base + 1]
    if base < 10:
        assert starts(made) == [FromNoise, Continue]
        assert made.passes[1].sigmas == whole[base:]
        assert made.passes[1].network.unet is service_of("sd1", refiner="sd1").refiner.unet
    assert any("no step to draw" in line for line in made.decisions) == (base == 10)


def test_the_refiner_keeps_what_a_mask_keeps():
    made = encoded(refiner="sd1", refiner_switch=0.5, image=photo(), mask=right_half())
    first, second = made.passes
    assert first.inpaint_mask is not None
    assert second.inpaint_mask is first.inpaint_mask
    assert (first.adapters, second.adapters) == (None, None)
    assert not any("adapters act" in line for line in made.decisions)


def test_that_adapters_do_not_act_on_the_refiner_is_said(tmp_path):
    path = write(tmp_path / "a.safetensors", kohya(layers_of(service_of("sd1").unet), rank=2))
    told = "adapters act on the base model, not on the refiner"
    made = encoded(refiner="sd1", adapters=(Adapter(path),))
    assert told in made.decisions
    assert [one.adapters is not None for one in made.passes] == [True, False]
    assert told not in encoded(adapters=(Adapter(path),)).decisions


def test_a_refiner_with_other_noise_levels_is_refused():
    base = service_of("sd1").model
    other = replace(base, schedule=replace(base.schedule, betas=LinearBetas()))
    with pytest.raises(InvalidInput, match="trained with the base model's noise levels"):
        encoded_of(base, GenerationRequest(prompt=""), Watch(), manager=service_of("sd1").adapters, refiner=other)


@pytest.mark.parametrize(
    ("brought", "start", "count"),
    [
        ({}, FromNoise, 4),
        ({"image": photo()}, FromPicture, 3),
        ({"image": photo(), "strength": 0.5}, FromPicture, 2),
        ({"image": photo(), "strength": 0.0}, FromPicture, 0),
        ({"image": photo(), "strength": 1.0}, FromPicture, 4),
        ({"image": photo(), "mask": right_half(), "strength": 0.5}, FromPicture, 2),
        ({"image": photo(), "mask": right_half(), "strength": 1.0}, FromNoise, 4),
        ({"image": photo(), "strength": 0.5, "strength_convention": "a1111"}, FromPicture, 3),
        ({"image": photo(), "strength": 0.5, "strength_convention": "comfy"}, FromPicture, 4),
    ],
)
def test_where_a_picture_starts_and_how_many_steps_its_strength_leaves(brought, start, count):
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    watch = Watch()
    made = encoded(steps=4, latents=noise, watch=watch, **brought, **DDIM)
    assert starts(made) == [start]
    assert steps(made) == [count]
    (one,) = made.passes
    assert one.start.given is noise
    assert len(one.branches) == max(1, count)
    assert len(one.sigmas) == count + 1
    assert (one.inpaint_mask is not None) == ("mask" in brought)
    assert ("encode" in watch.seconds) == ("image" in brought)
    if start is FromPicture:
        assert one.start.latents.shape == (1, 4, 16, 16)


def test_editing_reads_the_picture_and_does_not_start_from_it():
    made = encoded(family="pix2pix", image=photo(), strength=0.1, steps=4, **DDIM)
    (one,) = made.passes
    assert (starts(made), steps(made)) == ([FromNoise], [4])
    assert one.extra.shape == one.without_image.shape == (1, 4, 16, 16)
    # The autoencoder's own latents, without their scale (arXiv:2211.09800, and its code).
    with torch.no_grad():
        own = service_of("pix2pix").vae.encode(to_pixels(photo(), (32, 32))).mode()
    torch.testing.assert_close(one.extra, own, rtol=1e-5, atol=1e-5)
    assert not one.without_image.any()


def test_a_depth_map_is_read_without_a_picture_too():
    service = service_of("sd1")
    unet = UNet(replace(service.config, in_channels=5))
    manager = AdapterManager(unet, service.model.text)
    request = GenerationRequest(prompt="", depth=Image.linear_gradient("L").resize((32, 32)))
    (one,) = encoded_of(replace(service.model, unet=unet), request, Watch(), manager=manager).passes
    assert one.extra.shape == (1, 1, 16, 16)
    assert isinstance(one.start, FromNoise)


def test_a_second_pass_is_larger_and_has_steps_of_its_own():
    how = HighResolution(scale=1.6, strength=0.5, steps=6)
    made = encoded(size=(32, 48), steps=4, high_resolution=how, **DDIM)
    assert made.size == (52, 76)  # 51.2 and 76.8 pixels, in cells of 2
    assert [one.layout.size for one in made.passes] == [(16, 24), (26, 38)]
    assert starts(made) == [FromNoise, Upscaled]
    assert made.passes[1].start.how == how
    assert steps(made) == [4, 3]
    schedule = service_of("sd1").model.schedule
    assert made.passes[1].sigmas == sigma_grid("ddim", schedule, 6)[3:]
    own = encoded(steps=4, high_resolution=replace(how, steps=None), **DDIM)
    assert steps(own) == [4, 2]
    counted = encoded(steps=4, high_resolution=how, strength_convention="a1111", **DDIM)
    assert steps(counted) == [4, 4]


@pytest.mark.parametrize(
    ("settings", "discarded"),
    [
        ({"sampler": "euler"}, False),
        ({"sampler": "dpm_2"}, True),
        ({"sampler": "dpm_2", "discard_penultimate": False}, False),
        ({"sampler": "euler", "discard_penultimate": True}, True),
    ],
)
def test_levels_are_those_of_schedule_and_sampler(settings, discarded):
    schedule = service_of("sd1").model.schedule
    made = encoded(steps=5, schedule="karras", **settings)
    assert made.passes[0].sigmas == sigma_grid("karras", schedule, 5, discard_penultimate=discarded)


def test_a_grid_of_ones_own_takes_the_place_of_schedule_and_steps():
    made = encoded(steps=9, sigmas=(10.0, 4.0, 1.0, 0.0))
    assert made.passes[0].sigmas == [10.0, 4.0, 1.0, 0.0]
    half = encoded(sigmas=(10.0, 4.0, 1.0, 0.5, 0.0), image=photo(), strength=0.5)
    assert half.passes[0].sigmas == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(("asked", "expected"), [("interpolated", 400.25), ("nearest", 400.0)])
def test_timesteps_are_mapped_as_asked(asked, expected):
    network = encoded(timestep_map=asked).passes[0].network
    sigmas = service_of("sd1").model.schedule.sigmas
    between = float(torch.exp(torch.lerp(sigmas[400].log(), sigmas[401].log(), 0.25)))
    x = torch.zeros(1, 4, 16, 16)
    _, timestep = network.preconditioning.inputs(x, torch.tensor([between], dtype=torch.float64))
    assert float(timestep) == pytest.approx(expected, abs=1e-2)
    assert network.preconditioning.network_dtype == torch.float32
    half = service_of("sd1", torch.bfloat16)
    made = encoded_of(half.model, GenerationRequest(prompt=""), Watch(), manager=half.adapters)
    assert made.passes[0].network.preconditioning.network_dtype == half.unet.dtype  # float32 where bfloat16 is imitated
    assert made.passes[0].branches[0].conditional[0][0].context.dtype == half.unet.dtype


HALVES = (Region(prompt="cat", box=(0, 0, 0.5, 1), weight=3.0), Region(prompt="dog", box=(0.5, 0, 1, 0.5)))


def test_regions_are_masks_with_their_weights_or_stand_in_the_text():
    (apart,) = encoded(regions=HALVES).passes
    left, right = apart.composition.masks
    assert left[0, 0, :, :8].eq(3).all()
    assert right[0, 0, :8, 8:].eq(1).all()
    assert (float(left.sum()), float(right.sum())) == (3 * 16 * 8, 8 * 8)
    assert len(apart.branches[0].regions) == 2
    (together,) = encoded(regions=HALVES, regions_by="attention").passes
    assert together.composition.masks == ()
    conditional = together.branches[0].conditional[0][0]
    assert conditional.regions.shape == (1, 3 * 77, 16, 16)
    assert conditional.regions[0, 77].sum() == 16 * 8
    assert apart.branches[0].conditional[0][0].regions is None


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        ({}, True),
        ({"guidance_scale": 1.0}, False),
        ({"guidance_method": "cfg(start=0.1,end=0.2)", "steps": 4}, False),
        ({"guidance_method": "cfg(start=0.9,end=1)", "steps": 4}, True),
        ({"guidance_method": "cfg(start=0.5)", "steps": 4}, True),
        ({"guidance_scale": 1.0, "sampler": "euler_cfg_pp"}, True),
    ],
)
def test_a_negative_prompt_is_encoded_when_a_step_asks_for_it(settings, needed):
    """From 0.1 to 0.2 of four steps there is none, from 0.9 on there is the last."""
    (one,) = encoded(**settings).passes
    assert all((each.unconditional is not None) == needed for each in one.branches)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regions": HALVES, "regions_by": "attention", "views": Views()}, "windows do not move regions"),
        ({"regions": HALVES, "regions_by": "attention", "seamless": "x"}, "windows do not move regions"),
        ({"sampler": "ddim_inverse", "schedule": "ddim"}, "one that ends in a picture"),
        ({"guidance_method": "cfg+sag", "views": Views()}, "its attention map is of one window"),
        ({"guidance_method": "cfg+sag(start=0.2,end=0.5)", "views": Views()}, "its attention map is of one window"),
        ({"latents": torch.zeros(1, 4, 16, 15)}, r"\[1, 4, 16, 16\]: one for each picture"),
        ({"latents": torch.zeros(2, 4, 16, 16)}, "one for each picture"),
        ({"latents": torch.zeros(1, 3, 16, 16)}, "one for each picture"),
        ({"mask": right_half(), "image": photo(), "depth": Image.new("L", (32, 32))}, "this model reads none"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(settings, message):
    with pytest.raises(InvalidInput, match=message):
        encoded(**settings)


def test_attention_shows_regions_only_whole_pictures_but_estimates_all():
    encoded(regions=HALVES, regions_by="attention")
    encoded(regions=HALVES, views=Views(), seamless="x")


@pytest.mark.parametrize("part", ["unet", "vae", "text"])
def test_a_part_that_the_checkpoint_lacks_is_named(part):
    service = service_of("sd1")
    manager = AdapterManager(service.unet, service.model.text)
    with pytest.raises(MissingComponent):
        encoded_of(replace(service.model, **{part: None}), GenerationRequest(prompt=""), Watch(), manager=manager)


def test_every_text_is_seen_once_by_its_name():
    watch = Watch(debug=Debug(shapes=True))
    encoded("[red:blue:2] AND green", negative_prompt="dark", steps=4, watch=watch)
    assert [line.split(":")[0] for line in watch.lines] == ["text_context_cond"] * 2 + [
        "text_context_uncond",
        "text_context_cond",
    ]
    watch = Watch(debug=Debug(shapes=True))
    encoded(family="sdxl", watch=watch)
    assert [line.split(":")[0] for line in watch.lines] == [
        "text_context_cond",
        "text_pooled_cond",
        "text_context_uncond",
        "text_pooled_uncond",
    ]


def test_what_is_decided_is_said_once():
    made = encoded(family="sdxl", high_resolution=HighResolution())
    assert len(made.passes) == 2
    assert made.decisions == (
        "an empty negative prompt is zeros, not an encoded empty text, as in SDXL's own pipeline",
    )
    odd = encoded(image=photo(size=33))
    assert odd.size == (32, 32)
    assert odd.decisions == ("the image is 33x33; drawn at 32x32",)


@pytest.mark.parametrize("family", ["sdxl"])
def test_sdxl_is_told_the_size_of_each_pass_in_pixels(family):
    made = encoded(family=family, size=(32, 48), high_resolution=HighResolution(scale=2.0))
    told = [one.branches[0].conditional[0][0].time_ids.tolist() for one in made.passes]
    assert told == [[[32, 48, 0, 0, 32, 48]], [[64, 96, 0, 0, 64, 96]]]
