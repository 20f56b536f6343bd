"""Text to picture on a tiny random SD1: what is promised of every run (R123-R129, R141-R149, R176-R178, R185, R195)."""

import shutil

import numpy as np
import pytest
import torch

import undertow
from tests.services import copy_pipeline, fresh_service, service_of
from undertow import InvalidInput, MissingComponent, NonFiniteError
from undertow.checkpoints.write.unet_folder import save_unet
from undertow.engine.request import GenerationRequest
from undertow.processor import has_bfloat16

TOLERANCE = 1e-5
"""Of the latents' largest value, in float32: rows computed in batches of another size."""

DRAWN = {"steps": 4, "guidance_scale": 3.0, "sampler": "euler", "schedule": "karras", "seed": 3}


def assert_close(found, expected, tolerance=TOLERANCE):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * max(1.0, expected.abs().max().item()))


def pixels(result):
    return [np.asarray(image, dtype=int) for image in result.images]


@pytest.mark.parametrize("sampler", ["euler", "euler_a", "dpmpp_2m"])
def test_picture_k_of_a_batch_is_the_one_its_seed_gives_alone(service, sampler):
    settings = DRAWN | {"sampler": sampler}
    batch = service.generate("red apple", count=3, **settings)
    alone = [service.generate("red apple", **settings | {"seed": 3 + k}) for k in range(3)]

    for k in range(3):
        assert_close(batch.latents[k : k + 1], alone[k].latents)
    assert (batch.latents[0] - batch.latents[1]).abs().max() > 0.1


def test_two_runs_are_bit_identical(service):
    first, second = (service.generate("red apple", **DRAWN | {"sampler": "euler_a"}) for _ in range(2))

    assert torch.equal(first.latents, second.latents)
    assert np.array_equal(*(pixels(run)[0] for run in (first, second)))


def test_given_latents_take_the_place_of_the_seed_s(service):
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))

    assert torch.equal(service.generate("a", latents=noise, **DRAWN).latents, service.generate("a", **DRAWN).latents)
    assert not torch.equal(
        service.generate("a", latents=-noise, **DRAWN).latents, service.generate("a", **DRAWN).latents
    )


def test_the_report_tells_what_was_done(service, sd1_folder):
    report = service.generate("red apple", negative_prompt="dark", size=(32, 48), **DRAWN).report

    assert report.size == (32, 48)
    assert report.request.seeds == [3]
    assert len(report.sigmas) == 5
    assert report.sigmas[-1] == 0
    assert report.model == sd1_folder.name
    assert set(report.seconds) == {"text", "unet", "decode"}
    assert report.rows == 2


def test_observers_see_every_step_once_in_order(service):
    events = []
    service.generate("a", observe=events.append, **DRAWN | {"sampler": "heun"})

    assert [event.step for event in events] == [0, 1, 2, 3]
    assert events[0].denoised is None
    assert all(event.denoised.shape == (1, 4, 16, 16) for event in events[1:])


def test_shapes_are_noted_at_every_check_point(service):
    lines = service.generate("red apple", debug="shapes", **DRAWN | {"steps": 2}).report.debug

    assert [line.split(":")[0] for line in lines] == [
        "text_context_cond",
        "text_context_uncond",
        "step_0_noise_cond",
        "step_0_noise_uncond",
        "step_0_latents",
        "step_1_noise_cond",
        "step_1_noise_uncond",
        "step_1_latents",
        "vae_input",
        "vae_output",
    ]


def first_text_encoder(service):
    return service.model.text.encoders[0]


def middle(service):
    return service.unet.mid_block.resnets[0].conv1


@pytest.mark.parametrize(
    ("damaged", "stop", "said"),
    [(first_text_encoder, "text_context_cond", "NaN"), (middle, "mid_block.resnets.0.conv1", "weights .* step 0,")],
)
def test_watching_nan_stops_at_the_first_check_point_that_sees_one(damaged, stop, said):
    service = fresh_service("sd1")
    with torch.no_grad():
        next(damaged(service).parameters()).fill_(float("nan"))

    with pytest.raises(NonFiniteError, match=said) as found:
        service.generate("red apple", debug="nan", **DRAWN)
    assert found.value.layer == stop


def test_editing_and_composition_vary_over_the_steps(service):
    plain = service.generate("red apple", **DRAWN).latents
    edited = service.generate("[red apple:blue dog:2]", **DRAWN).latents
    composed = service.generate("red apple AND blue dog :0.5", **DRAWN).latents
    same = service.generate("[red apple:blue dog:9]", **DRAWN).latents

    assert_close(same, plain)
    assert (edited - plain).abs().max() > 0.01
    assert (composed - plain).abs().max() > 0.01


def test_composition_adds_directions(service):
    """u + s Σ w (c - u): a prompt AND itself at half weight each is the prompt."""
    plain = service.generate("red apple", **DRAWN).latents
    halves = service.generate("red apple :0.5 AND red apple :0.5", **DRAWN).latents

    assert_close(halves, plain, tolerance=1e-4)  # four steps amplify the rounding of another sum


def test_an_empty_prompt_is_a_prompt(service):
    assert service.generate("", **DRAWN).images[0].size == (32, 32)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": (30, 33)}, "33x30, expected multiples of 2 pixels; the nearest is 32x30"),
        ({"sampler": "eular"}, "did you mean 'euler'"),
        ({"schedule": "karas"}, "did you mean 'karras'"),
        ({"sampler": "flow_euler"}, "expected one for VariancePreserving"),
        ({"dialect": "a111"}, "did you mean 'a1111'"),
        ({"steps": 0}, "steps is 0"),
        ({"brightness": 3}, "brightness"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_any_work(service, settings, words, monkeypatch):
    monkeypatch.setattr(type(service.unet), "forward", lambda *_: pytest.fail("ran"))
    with pytest.raises(InvalidInput, match=words.replace("(", r"\(")):
        service.generate("red apple", **DRAWN | settings)


def test_latents_of_another_size_are_refused(service):
    with pytest.raises(InvalidInput, match="one for each picture"):
        service.generate("a", latents=torch.zeros(1, 4, 8, 8), **DRAWN)


def test_a_part_that_is_missing_is_named(tmp_path):
    folder = copy_pipeline("sd1", tmp_path / "copy")
    shutil.rmtree(folder / "vae")
    with pytest.raises(MissingComponent, match="VAE"):
        undertow.load(folder, dtype=torch.float32).generate("a", **DRAWN)


def test_bfloat16_stays_near_float32(service):
    half = service_of("sd1", torch.bfloat16)
    exact, rounded = (s.generate("red apple", **DRAWN).latents for s in (service, half))

    computed_in = torch.bfloat16 if has_bfloat16() else torch.float32
    assert half.unet.dtype == half.vae.dtype == computed_in
    assert rounded.isfinite().all()
    assert (rounded - exact).norm() / exact.norm() < 0.1  # eight bits, four steps


def test_a_request_is_data(service):
    request = GenerationRequest(prompt="red apple", **DRAWN)
    assert torch.equal(service.run(request).latents, service.generate("red apple", **DRAWN).latents)


def test_float16_weights_compute_in_float32_on_a_cpu_unless_float16_is_asked_for(tmp_path):
    folder = copy_pipeline("sd1", tmp_path / "pipeline")
    half = service_of("sd1", torch.float16)
    assert half.unet.dtype == torch.float16
    save_unet(half.unet, folder / "unet")

    service = undertow.load(folder)
    assert service.unet.dtype == torch.float32
    assert any("float16 weights compute in float32" in note for note in service.generate("a", **DRAWN).report.decisions)
