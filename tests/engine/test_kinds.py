"""What each kind of request promises, on a tiny random SD1."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.engine.test_denoise import photo, right_half
from tests.services import service_of
from undertow import GenerationRequest, HighResolution, InvalidInput, Region, Views
from undertow.engine.layout import Layout, box_mask
from undertow.engine.passes import slerp
from undertow.pictures.pixels import to_images
from undertow.vae.latent_values import latents_from_model

DRAWN = {"steps": 4, "guidance_scale": 3.0, "sampler": "euler", "schedule": "karras", "seed": 3}


def pixels(image):
    return np.asarray(image, dtype=int)


def test_at_strength_0_the_picture_is_its_own_reconstruction(service):
    result = service.generate("red apple", image=photo(), strength=0.0, **DRAWN)
    rebuilt = service.generate("something else", image=photo(), strength=0.0, **DRAWN | {"seed": 9})

    assert torch.equal(result.latents, rebuilt.latents)
    assert result.report.rows == 0


def test_a_small_strength_keeps_more_than_a_large_one(service):
    original = service.generate("", image=photo(), strength=0.0, **DRAWN).latents
    distances = [
        (service.generate("red apple", image=photo(), strength=s, **DRAWN).latents - original).abs().mean()
        for s in (0.25, 0.5, 1.0)
    ]
    assert distances[0] < distances[1] < distances[2]


def test_a_strength_below_one_step_takes_one_and_says_so(service):
    """It drew nothing, without a word."""
    drawn = service.generate("red apple", image=photo(), strength=0.2, **DRAWN)
    rebuilt = service.generate("red apple", image=photo(), strength=0.0, **DRAWN)
    assert not torch.equal(drawn.latents, rebuilt.latents)
    assert len(drawn.report.sigmas) == 2
    assert any("0.2 is less than one of 4 steps" in note for note in drawn.report.decisions)
    assert any("a strength of 0 takes no step" in note for note in rebuilt.report.decisions)
    second = service.generate("red apple", high_resolution=HighResolution(scale=1.5, strength=0.1), **DRAWN)
    assert any("0.1 is less than one of 4 steps" in note for note in second.report.decisions)


@pytest.mark.parametrize(
    ("family", "brought"),
    [("inpaint", {}), ("inpaint", {"image": photo(), "mask": right_half()}), ("pix2pix", {"image": photo()})],
)
def test_a_second_pass_shows_the_model_its_pictures_at_the_new_size(family, brought):
    """Without them a first convolution of 9 or 8 channels has only 4 to read."""
    how = HighResolution(scale=1.5, strength=0.5)
    drawn = service_of(family).generate("red apple", size=(32, 32), high_resolution=how, **brought, **DRAWN)
    assert drawn.images[0].size == (48, 48)


def test_inpainting_changes_only_the_mask(service):
    result = service.generate("red apple", image=photo(), mask=right_half(), strength=1.0, **DRAWN).images[0]

    difference = np.abs(pixels(result) - pixels(photo()))
    assert difference[:, :16].max() <= 1
    assert difference[:, 16:].mean() > 5


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_inpainting_keeps_the_latents_outside_the_mask(service, strength):
    """Latents, because the decoder's norms and attention see the whole picture: what is kept stays as it went in."""
    drawn = {"image": photo(), "mask": right_half(), "strength": strength, "paste": False} | DRAWN
    result = service.generate("red apple", **drawn)
    rebuilt = service.generate("red apple", **drawn | {"strength": 0.0})

    assert torch.equal(result.latents[..., :8], rebuilt.latents[..., :8])
    assert (result.latents - rebuilt.latents)[..., 8:].abs().mean() > 0.1


def test_what_a_mask_keeps_is_enlarged_with_the_rest(service):
    """A second pass of strength 0 shows what it was given."""
    how = HighResolution(scale=2.0, strength=0.0, upscale="latent")
    brought = {"image": photo(), "mask": right_half(), "high_resolution": how}
    found, rebuilt = (service.generate("a", strength=strength, **brought, **DRAWN).latents for strength in (1.0, 0.0))
    assert torch.equal(found[..., :14], rebuilt[..., :14])  # beside the seam, which the enlargement mixes
    assert not torch.equal(found[..., 18:], rebuilt[..., 18:])


@pytest.mark.parametrize("strength", [0.8, 1.0])
def test_a_mask_keeps_through_a_relay_what_it_keeps_alone(service, strength):
    """DDIM has no memory of earlier steps: a model that takes over from itself changes nothing."""
    relay = service_of("sd1", refiner="sd1")
    drawn = {"image": photo(), "mask": Image.linear_gradient("L").resize((32, 32)), "strength": strength}
    drawn |= DRAWN | {"sampler": "ddim", "schedule": "ddim"}
    expected = service.generate("red apple", **drawn).latents
    found = relay.generate("red apple", refiner_switch=0.5, **drawn).latents
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_a_soft_mask_mixes(service):
    soft = Image.linear_gradient("L").resize((32, 32))
    result = service.generate("red apple", image=photo(), mask=soft, strength=1.0, **DRAWN).images[0]
    change = np.abs(pixels(result) - pixels(photo())).mean(axis=(1, 2))

    assert change[:6].mean() < change[-6:].mean()


def test_a_region_changes_mostly_its_part(service):
    plain = service.generate("red apple", **DRAWN | {"steps": 1}).latents
    left = Region(prompt="blue dog", box=(0, 0, 0.5, 1))
    changed = service.generate("red apple", regions=(left,), **DRAWN | {"steps": 1}).latents

    assert (changed - plain)[..., :8].abs().max() > 0.01
    torch.testing.assert_close(changed[..., 8:], plain[..., 8:], rtol=0, atol=1e-5)


def test_a_second_pass_enlarges(service):
    for upscale in ("latent", "pixels"):
        how = HighResolution(scale=2.0, strength=0.5, upscale=upscale)
        result = service.generate("red apple", high_resolution=how, **DRAWN)
        assert result.images[0].size == (64, 64)
        assert result.latents.shape[2:] == (32, 32)


def test_variations_go_from_one_seed_to_another(service):
    one = service.generate("a", **DRAWN).latents
    other = service.generate("a", **DRAWN | {"seed": 8}).latents
    at = {s: service.generate("a", variation_seed=8, variation_strength=s, **DRAWN).latents for s in (0.0, 0.3, 1.0)}
    assert torch.equal(at[0.0], one)
    torch.testing.assert_close(at[1.0], other, rtol=0, atol=1e-3)
    assert 0 < (at[0.3] - one).abs().mean() < (other - one).abs().mean()


def test_one_view_of_everything_is_no_views(service):
    plain = service.generate("a", **DRAWN).latents
    assert torch.equal(service.generate("a", views=Views(window=32), **DRAWN).latents, plain)


def test_in_a_seamless_picture_one_edge_acts_on_the_other(service):
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    other = noise.clone()
    other[..., -1] += 1

    def change(axes):
        first, second = (
            service.generate("a", seamless=axes, latents=start, **DRAWN | {"steps": 1}).latents
            for start in (noise, other)
        )
        return (first - second)[..., 0].abs().mean()

    assert change("x") > 3 * change("none")
    assert change("y") < change("x")


def test_a_seamless_picture_is_decoded_with_its_other_side_around_it(service):
    """As in the middle of three of them beside each other, of which the decoder sees no edge."""
    result = service.generate("a", seamless="x", **DRAWN | {"steps": 1})
    seen = latents_from_model(service.vae.config.latent_space, torch.cat([result.latents] * 3, dim=3))
    with torch.inference_mode():
        middle = pixels(to_images(service.vae.decode(seen))[0])[:, 32:64]
        alone = pixels(to_images(service.vae.decode(seen[..., :16]))[0])
    edges = (slice(None), [0, 1, 30, 31])
    found = np.abs(pixels(result.images[0]) - middle)[edges].mean()
    assert found < 0.3 * np.abs(alone - middle)[edges].mean()


@pytest.mark.parametrize("seamless", ["none", "x", "y", "both"])
@pytest.mark.parametrize(("size", "window"), [((16, 16), (16, 16)), ((24, 40), (16, 16)), ((9, 30), (9, 8))])
def test_what_is_spread_is_gathered_again(size, window, seamless):
    canvas = torch.randn(1, 2, *size)
    layout = Layout(size=size, window=window, overlap=0.5, seamless=seamless)
    parts = layout.split_tiles(canvas)

    assert len({part.shape for part in parts}) == 1
    torch.testing.assert_close(layout.merge_tiles(parts), canvas)


def test_a_box_covers_at_least_one_cell():
    assert box_mask((0.99, 0.99, 1.0, 1.0), (4, 4)).sum() == 1
    assert torch.equal(box_mask((0, 0, 0.5, 1), (4, 4))[0, 0, 0], torch.tensor([1.0, 1, 0, 0]))


def test_slerp_keeps_the_norm_of_noise():
    one, other = torch.randn(2, 1, 4, 16, 16).unbind()
    half = slerp(one, other, 0.5)
    assert abs(half.std().item() - 1) < 0.1
    assert torch.equal(slerp(one, one, 0.5), one)


BAD = [
    ({"strength": 1.5}, "from 0"),
    ({"image": photo(), "mask": right_half(16)}, "the image's size"),
    ({"mask": right_half()}, "give the image"),
    ({"variation_strength": 0.5}, "variation_seed"),
    ({"sigmas": (1.0, 2.0, 0.0)}, "decreas"),
    ({"depth": photo()}, "reads none"),
    ({"views": Views(window=33)}, "multiple of 2"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_bad_requests_are_refused_before_any_work(service, settings, message):
    with pytest.raises(InvalidInput, match=message):
        service.generate("a", **settings)


@pytest.mark.parametrize("box", [(0, 0, 0, 1), (0.5, 0, 0.4, 1), (0, 0, 1.2, 1)])
def test_an_empty_region_is_refused(box):
    with pytest.raises(InvalidInput, match="left < right"):
        Region(prompt="a", box=box)


def test_a_request_goes_through_json_with_its_pictures():
    request = GenerationRequest(
        prompt="a",
        image=photo(),
        mask=right_half(),
        regions=(Region(prompt="b", box=(0, 0, 0.5, 1)),),
        high_resolution=HighResolution(),
        views=Views(),
        sampler_options={"eta": 0.5},
    )
    json = request.to_json(embed=False)
    again = GenerationRequest.from_json(json, image=photo(), mask=right_half())

    assert again.to_json(embed=False) == json
    assert again.regions == request.regions
    with pytest.raises(InvalidInput, match="--image"):
        GenerationRequest.from_json(json)
    with pytest.raises(InvalidInput, match="pixels differ"):
        GenerationRequest.from_json(json, image=photo(1), mask=right_half())


METHODS = (
    "cfg",
    "cfg(start=0.3,end=0.8)",
    "cfg+rescale",
    "apg(eta=0.5)",
    "zero_star",
    "tangential",
    "cfg+pag(scale=2)",
    "cfg+seg(scale=2)",
    "cfg+sag",
    "cfg+threshold(percentile=0.9)",
    "cfg+mimic(scale=1)",
    "cfg+free_u(b1=1.3,b2=1.4,keyed=index)",
    "cfg(scale=5|4|3)",
)


def test_guidance_methods_share_batches_and_equal_themselves_alone(service):
    drawn = DRAWN | {"sigmas": (10.0, 6.0, 3.0, 0.0)}  # so that every step counts
    requests = [GenerationRequest(prompt="red apple", guidance_method=method, **drawn) for method in METHODS]
    together = service.generate_many(requests)

    for request, result in zip(requests, together, strict=True):
        alone = service.run(request)
        scale = max(1.0, alone.latents.abs().max().item())
        torch.testing.assert_close(result.latents, alone.latents, rtol=0, atol=1e-5 * scale)
        if request.guidance_method != "cfg":
            assert (result.latents - together[0].latents).abs().mean() > 1e-3, request.guidance_method


def test_samplers_of_cfg_pp_get_the_unconditional_estimate(service):
    plain, pp = (
        service.generate("red apple", **DRAWN | {"sampler": name}).latents for name in ("euler", "euler_cfg_pp")
    )
    assert (plain - pp).abs().mean() > 1e-3


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("cgf", "cfg"),
        ("cfg(", "a name with options"),
        ("pag(scale)", "NAME=VALUE"),
        ("pag(sigma=2)", "one of scale"),
        ("pag(layers=nowhere)", "self-attention"),
        ("rescale+cfg", "at most one base"),
        ("cfg(start=0.8,end=0.2)", "start"),
        ("rescale(amount=2)", "from 0 to 1"),
        ("cfg(scale=3|2)", "step"),
    ],
)
def test_bad_guidance_is_refused_before_any_work(service, method, message):
    with pytest.raises(InvalidInput, match=message):
        service.generate("a", guidance_method=method, **DRAWN)


@pytest.mark.parametrize(("right", "rows"), [(1.0, 3), (0.9, 4)], ids=["covered", "a part left"])
def test_a_prompt_that_regions_leave_no_place_costs_nothing(service, right, rows):
    """A row for each region and one for what guidance pushes away from; one more where something is left."""
    regions = (Region(prompt="red", box=(0, 0, 0.5, 1)), Region(prompt="blue", box=(0.5, 0, right, 1)))
    drawn = DRAWN | {"steps": 2, "regions": regions}
    one, other = (service.generate(prompt, **drawn) for prompt in ("apple", "dog"))
    assert one.report.rows == rows
    assert torch.equal(one.latents, other.latents) == (rows == 3)


def test_self_attention_guidance_looks_at_the_prompt_beside_regions_too(service):
    halves = (Region(prompt="red", box=(0, 0, 0.5, 1)), Region(prompt="blue", box=(0.5, 0, 1, 1)))
    drawn = DRAWN | {"steps": 2, "regions": halves, "guidance_method": "cfg+sag(side=conditional)"}
    one, other = (service.generate(prompt, **drawn).latents for prompt in ("apple", "dog"))
    assert not torch.equal(one, other)


def test_regions_by_attention_show_each_part_its_own_prompt(service):
    left = Region(prompt="blue dog", box=(0, 0, 0.5, 1))
    everywhere = Region(prompt="blue dog", box=(0, 0, 1, 1))
    drawn = DRAWN | {"steps": 2, "regions_by": "attention"}
    plain = service.generate("red apple", **DRAWN | {"steps": 2}).latents
    other = service.generate("blue dog", **DRAWN | {"steps": 2}).latents

    whole = service.generate("red apple", regions=(everywhere,), **drawn).latents
    torch.testing.assert_close(whole, other, rtol=0, atol=1e-4 * other.abs().max().item())
    changed = (service.generate("red apple", regions=(left,), **drawn).latents - plain).abs()
    assert changed[..., :8].mean() > 1.5 * changed[..., 8:].mean()


def test_the_penultimate_level_is_left_out_where_other_tools_do(service):
    def sigmas(**settings):
        return service.generate("a", **DRAWN | settings, observe=lambda event: event.cancel()).report.sigmas

    plain, kept = sigmas(sampler="dpm_2", discard_penultimate=False), sigmas(sampler="euler")
    assert plain == kept
    assert sigmas(sampler="dpm_2") == sigmas(sampler="euler", discard_penultimate=True)
    assert len(sigmas(sampler="dpm_2")) == len(kept)
    assert sigmas(sampler="dpm_2")[-2] > kept[-2]


def test_self_attention_guidance_of_composed_prompts(service):
    settings = DRAWN | {"steps": 2, "guidance_method": "cfg+sag(side=conditional)"}
    composed = service.generate("red AND blue", **settings).latents
    assert torch.isfinite(composed).all()
    with pytest.raises(InvalidInput, match="one window"):
        service.generate("red", views=Views(), **settings)
