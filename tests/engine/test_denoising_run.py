"""One picture on its way: which noise it starts from, what observers and watches are told, where it stops."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.engine.test_denoise import photo, right_half
from tests.services import fresh_service
from undertow import GenerationRequest, HighResolution, InvalidInput, NonFiniteError, Region
from undertow.engine import decode
from undertow.engine.engine import Engine
from undertow.engine.options import RunOptions
from undertow.engine.request import MAX_SEED

SAME = 1e-5
"""Of the largest value, in float32: the same steps from noise that was rounded once more."""

HALVES = (Region(prompt="cat", box=(0, 0, 0.5, 1)), Region(prompt="dog", box=(0.5, 0, 1, 0.5)))
ONE = {"sampler": "euler", "sigmas": (10.0, 0.0)}
TWO = {"sampler": "euler", "sigmas": (10.0, 3.0, 0.0)}


def normal(seed: int, *, before: int = 0, size: tuple[int, int] = (16, 16)) -> torch.Tensor:
    """What a seed draws, after some draws before."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(before):
        torch.randn(4, 16, 16, generator=generator)
    return torch.randn(1, 4, *size, generator=generator)


def on_the_circle(one: torch.Tensor, other: torch.Tensor, share: float) -> torch.Tensor:
    """Shoemake 1985, in float64."""
    one, other = one.double(), other.double()
    angle = math.acos(float((one * other).sum() / (one.norm() * other.norm())))
    return (math.sin((1 - share) * angle) * one + math.sin(share * angle) * other) / math.sin(angle)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=SAME * max(1.0, expected.abs().max().item()))


def test_picture_k_of_variations_goes_from_seed_k_to_variation_seed_k(service):
    noise = torch.cat([on_the_circle(normal(3 + k), normal(9 + k), 0.3).float() for k in range(2)])
    found = service.generate("a", seed=3, count=2, variation_seed=9, variation_strength=0.3, **ONE)
    assert_close(found.latents, service.generate("a", count=2, latents=noise, **ONE).latents)
    assert (found.latents[0] - found.latents[1]).abs().max() > 0.1


def test_given_noise_varies_too(service):
    noise = normal(5)
    found = service.generate("a", latents=noise, variation_seed=9, variation_strength=0.3, **ONE)
    expected = on_the_circle(noise, normal(9), 0.3).float()
    assert_close(found.latents, service.generate("a", latents=expected, **ONE).latents)


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1])
def test_a_variation_seed_that_is_none_is_refused_before_any_step(seed):
    with pytest.raises(InvalidInput) as refusal:
        GenerationRequest(prompt="", variation_seed=seed, variation_strength=0.5)
    assert refusal.value.argument == "variation_seed"
    GenerationRequest(prompt="", variation_seed=MAX_SEED - 1, variation_strength=0.5, count=2)
    with pytest.raises(InvalidInput):
        GenerationRequest(prompt="", variation_seed=MAX_SEED, variation_strength=0.5, count=2)


def test_what_a_sampler_draws_does_not_depend_on_given_noise(service):
    drawn = {"seed": 3, "sampler": "euler_a", "sigmas": (10.0, 3.0, 0.0)}
    given = service.generate("a", latents=normal(3), **drawn)
    assert torch.equal(given.latents, service.generate("a", **drawn).latents)


def test_a_second_pass_draws_on_from_the_seed_and_not_from_given_noise(service):
    """Two draws of one stream: the second is of the larger size."""
    how = HighResolution(scale=1.5, strength=1.0, upscale="latent")
    found = service.generate("a", seed=3, high_resolution=how, latents=normal(3), **ONE)
    small = service.generate("a", seed=3, **ONE).latents
    larger = torch.nn.functional.interpolate(small, size=(24, 24), mode="bilinear", align_corners=False)
    start = larger + 10 * normal(3, before=1, size=(24, 24))  # sigma 10
    given = start / math.sqrt(1 + 10.0**2)  # undertow scales standard normal noise so at the start
    assert_close(found.latents, service.generate("a", size=(48, 48), latents=given, **ONE).latents)


def test_steps_are_told_with_their_level_and_the_newest_estimate(service):
    events = []
    result = service.generate("a", seed=3, count=2, observe=events.append, **TWO)
    assert [(event.picture, event.step, event.steps, event.sigma) for event in events] == [
        (0, 0, 2, 10.0),
        (1, 0, 2, 10.0),
        (0, 1, 2, 3.0),
        (1, 1, 2, 3.0),
    ]
    assert {event.request for event in events} == {0}
    assert [event.denoised is None for event in events] == [True, True, False, False]
    # A step to 0 ends in its estimate.
    first = service.generate("a", seed=3, count=2, **ONE).latents
    assert_close(torch.cat([event.denoised for event in events[2:]]), first)
    assert result.report.sigmas == TWO["sigmas"]


def test_steps_are_counted_over_all_passes(service):
    events = []
    how = HighResolution(scale=1.5, strength=0.7, upscale="latent")
    settings = {"sampler": "euler", "sigmas": (10.0, 6.0, 3.0, 0.0)}
    found = service.generate("a", high_resolution=how, observe=events.append, **settings)
    assert [(event.step, event.steps, event.sigma) for event in events] == [
        (0, 5, 10.0),
        (1, 5, 6.0),
        (2, 5, 3.0),
        (3, 5, 6.0),
        (4, 5, 3.0),
    ]
    assert events[3].denoised.shape == (1, 4, 16, 16)
    assert events[4].denoised.shape == (1, 4, 24, 24)
    assert found.report.sigmas == (6.0, 3.0, 0.0), "of the last pass"
    assert found.report.size == (48, 48)


def seen(service, prompt="a", **settings) -> list[str]:
    """The names that pass, without those of texts."""
    report = service.generate(prompt, debug="shapes", **{**ONE, **settings}).report
    return [name for line in report.debug if not (name := line.split(":")[0]).startswith("text")]


def test_every_question_has_a_name(service):
    end = ["step_0_latents", "vae_input", "vae_output"]
    assert seen(service) == ["step_0_noise_cond", "step_0_noise_uncond", *end]
    assert seen(service, guidance_scale=1.0) == ["step_0_noise_cond", *end]
    composed = ["step_0_noise_uncond", "step_0_noise_cond_0", "step_0_noise_cond_1"]
    assert seen(service, "a AND b", guidance_scale=1.0) == [*composed, *end]
    assert sorted(seen(service, "a AND b")) == sorted([*composed, *end])
    regions = ["step_0_noise_cond", "step_0_noise_region_0", "step_0_noise_region_1", "step_0_noise_uncond"]
    assert sorted(seen(service, regions=HALVES)) == sorted([*regions, *end])
    perturbed = ["step_0_noise_cond", "step_0_noise_uncond", "step_0_noise_cond_identity"]
    assert sorted(seen(service, guidance_method="cfg+pag")) == sorted([*perturbed, *end])


def test_names_count_steps_over_passes(service):
    how = HighResolution(scale=1.5, strength=1.0, upscale="latent")
    names = seen(service, guidance_scale=1.0, high_resolution=how)
    assert names == [
        "step_0_noise_cond",
        "step_0_latents",
        "step_0_latents",
        "step_1_noise_cond",
        "step_1_latents",
        "vae_input",
        "vae_output",
    ]


def cancel_at(step: int, picture: int = 0):
    def observe(event):
        if (event.picture, event.step) == (picture, step):
            event.cancel()

    return observe


@pytest.mark.parametrize(("step", "shape"), [(0, (0, 4, 16, 16)), (1, (0, 4, 16, 16)), (2, (1, 4, 16, 16))])
def test_a_cancelled_request_has_the_latents_of_the_passes_it_finished(service, step, shape):
    how = HighResolution(scale=1.5, strength=1.0, upscale="latent")
    found = service.generate("a", high_resolution=how, observe=cancel_at(step), **TWO)
    assert found.latents.shape == shape
    assert found.images == []
    assert found.report.cancelled
    assert "decode" not in found.report.seconds
    if step == 2:
        assert torch.equal(found.latents, service.generate("a", **TWO).latents)


def test_pictures_that_are_done_stay_with_a_request_that_is_cancelled(service):
    """With one row a forward the first picture may end before the second begins its last step."""
    done = []
    request = GenerationRequest(prompt="a", count=2, seed=3, guidance_scale=1.0, **TWO)
    (found,) = service.generate_many(
        [request], observe=cancel_at(1, picture=1), finished=lambda number, result: done.append(number)
    )
    assert found.report.cancelled
    assert done == []
    assert len(found.latents) <= 1


def test_an_error_of_one_picture_is_raised_and_ends_its_request_alone(service):
    entered = []

    def observe(event):
        entered.append((event.request, event.picture, event.step))
        if entered[-1] == (0, 1, 1):
            raise RuntimeError("broken")

    drawn = {"sampler": "euler", "sigmas": (10.0, 6.0, 3.0, 0.0)}
    requests = [GenerationRequest(prompt="a", count=2, **drawn), GenerationRequest(prompt="b", **drawn)]
    done = []
    with pytest.raises(RuntimeError, match="broken"):
        service.generate_many(requests, observe=observe, finished=lambda number, result: done.append(number))
    assert [step for request, _, step in entered if request == 1] == [0, 1, 2]
    assert (0, 0, 2) not in entered, "nobody would see the rest of its request"
    assert done == [1]


def test_of_several_errors_the_first_is_raised(service):
    def observe(event):
        raise RuntimeError(f"picture {event.picture}")

    with pytest.raises(RuntimeError, match="picture 0"):
        service.generate("a", count=2, observe=observe, **ONE)


def test_the_report_says_what_the_decoder_did(service, monkeypatch):
    """Clamping changes the picture, on request alone, and is counted."""
    monkeypatch.setattr(decode, "CLAMP", 0.5)
    plain, clamped = (service.generate("a", vae_clamp=clamp, **ONE) for clamp in (False, True))
    assert torch.equal(plain.latents, clamped.latents)
    assert (np.asarray(plain.images[0]) != np.asarray(clamped.images[0])).any()
    assert not any("clamped" in line for line in plain.report.decisions)
    assert any("the picture changed" in line for line in clamped.report.decisions)


def test_decisions_are_those_of_loading_preparing_and_decoding_in_this_order(monkeypatch):
    monkeypatch.setattr(decode, "CLAMP", 0.5)
    model = fresh_service("sd1").model
    model = replace(model, report=replace(model.report, notes=("loaded so",)))
    options = RunOptions(vae_clamp=True)
    request = GenerationRequest(prompt="a", image=photo(size=33), strength=0.0)
    found = Engine(model).submit(request, options=options).result()
    loaded, size, strength, clamped = found.report.decisions
    assert (loaded, size) == ("loaded so", "the image is 33x33; drawn at 32x32")
    assert "takes no step" in strength
    assert "clamped" in clamped
    assert found.report.model == model.path.name


def test_the_time_of_every_stage_is_reported(service):
    report = service.generate("a", image=photo(), strength=1.0, debug="timing", **TWO).report
    assert set(report.seconds) == {"encode", "text", "unet", "decode"}
    assert all(spent > 0 for spent in report.seconds.values())
    assert sum(line.startswith("unet:") for line in report.debug) == 2


def test_what_a_mask_keeps_is_pasted_into_the_finished_picture_alone(service):
    drawn = {"image": photo(), "mask": right_half(), "strength": 1.0, **TWO}
    previews = []
    pasted = service.generate("a", observe=lambda event: previews.append(event.preview()), **drawn).images[0]
    plain = service.generate("a", paste=False, **drawn).images[0]
    left = (slice(None), slice(0, 16))
    assert (np.asarray(pasted)[left] == np.asarray(photo())[left]).all()
    assert (np.asarray(plain)[left] != np.asarray(photo())[left]).any()
    right = (slice(None), slice(16, None))
    assert (np.asarray(pasted)[right] == np.asarray(plain)[right]).all()
    assert [None if one is None else one.size for one in previews] == [None, (16, 16)]


def test_a_preview_is_decoded_where_the_latents_have_no_colors():
    service = fresh_service("sd1")
    vae = service.vae
    vae.config = replace(vae.config, latent_space=replace(vae.config.latent_space, preview_factors=None))
    previews: list[Image.Image | None] = []
    drawn = {"image": photo(), "mask": right_half(), "strength": 1.0, **TWO}
    result = service.generate("a", observe=lambda event: previews.append(event.preview()), **drawn)
    assert previews[0] is None
    assert previews[1].size == result.images[0].size == (32, 32)
    kept = (slice(None), slice(0, 16))
    assert (np.asarray(previews[1])[kept] != np.asarray(photo())[kept]).any(), "what is kept is not pasted yet"


def test_numbers_that_are_none_are_told_while_the_others_go_on():
    service = fresh_service("sd1")
    service.vae.decoder.conv_out.register_forward_hook(lambda module, inputs, output: output * float("nan"))
    with pytest.raises(NonFiniteError):
        service.generate("a", **ONE)


def test_the_rows_reported_are_those_of_the_largest_batch(service):
    """Guidance in the first half of the steps: two rows, then one."""
    assert service.generate("a", guidance_method="cfg(end=0.5)", **TWO).report.rows == 2


def test_nothing_asked_for_is_nothing_drawn(service):
    assert service.generate_many([]) == []
