"""Adapters beside the weights, end to end: what diffusers' ControlNet and IP-Adapter pipelines draw from the same
noise."""

from dataclasses import replace

import diffusers
import pytest
import torch

from tests.adapters.beside import control_file, half, picture, prompt_file
from tests.golden.drawn import assert_same, ours, pipeline_of, theirs
from tests.golden.test_requests import DRAWN, SIDE, THEIRS, draws, seeded
from tests.services import service_of
from undertow import Adapter

PROMPT = "red apple"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    place, unet = tmp_path_factory.mktemp("adapters"), service_of("sd1").unet
    return {
        "edges": control_file(place / "edges", unet, seed=1),
        "pose": control_file(place / "pose", unet, seed=2),
        "base": prompt_file(place / "base.safetensors", unet, seed=3),
        "plus": prompt_file(place / "plus.safetensors", unet, seed=4, variant="plus"),
    }


def reference(files, controls=(), prompts=()):
    nets = [diffusers.ControlNetModel.from_pretrained(files[name]) for name in controls]
    if nets:
        nets = nets[0] if len(nets) == 1 else nets
        pipeline = pipeline_of(diffusers.StableDiffusionControlNetPipeline, "sd1", controlnet=nets)
    else:
        pipeline = pipeline_of(diffusers.StableDiffusionPipeline, "sd1")
    if prompts:
        place = files[prompts[0]].parent
        names = [files[name].name for name in prompts]
        pipeline.load_ip_adapter(str(place), subfolder="", weight_name=names, image_encoder_folder="image_encoder")
    return pipeline


def expected_of(pipeline, **settings):
    return theirs(pipeline, PROMPT, height=SIDE, width=SIDE, **THEIRS, generator=seeded(), **settings)


def result_of(*adapters):
    return service_of("sd1").generate(PROMPT, **DRAWN, adapters=adapters, latents=draws(1)[0])


CONTROL = {
    "plain": ({}, {}),
    "weaker": ({"controlnet_conditioning_scale": 0.4}, {"scale": 0.4}),
    "guess mode": ({"guess_mode": True}, {"control_mode": "control"}),
    "some steps": ({"control_guidance_start": 0.2, "control_guidance_end": 0.7}, {"start": 0.2, "end": 0.7}),
}


@pytest.mark.parametrize("case", CONTROL)
def test_a_controlnet(files, case):
    """C3."""
    asked, given = CONTROL[case]
    found = result_of(Adapter(files["edges"], image=picture(1), **given))
    assert_same(ours(found), expected_of(reference(files, ["edges"]), image=picture(1), **asked))


def test_two_controlnets(files):
    adapters = (Adapter(files["edges"], image=picture(1)), Adapter(files["pose"], image=picture(2), scale=0.5))
    expected = expected_of(
        reference(files, ["edges", "pose"]),
        image=[picture(1), picture(2)],
        controlnet_conditioning_scale=[1.0, 0.5],
    )
    assert_same(ours(result_of(*adapters)), expected)


@pytest.mark.parametrize("name", ["base", "plus"])
def test_an_image_prompt(files, name):
    """I1 and I3: also of no picture, for the unconditional side."""
    pipeline = reference(files, prompts=[name])
    pipeline.set_ip_adapter_scale(0.7)
    found = result_of(Adapter(files[name], image=picture(3), scale=0.7))
    assert_same(ours(found), expected_of(pipeline, ip_adapter_image=picture(3)))


def test_two_image_prompts_one_with_masked_pictures(files):
    """I2."""
    pipeline = reference(files, prompts=["base", "plus"])
    pipeline.set_ip_adapter_scale([[0.7, 0.7], 0.4])
    masks = diffusers.image_processor.IPAdapterMaskProcessor().preprocess([half("left"), half("right")], 32, 32)
    whole = torch.ones(1, 1, 32, 32)
    expected = expected_of(
        pipeline,
        ip_adapter_image=[[picture(3), picture(4)], [picture(5)]],
        cross_attention_kwargs={"ip_adapter_masks": [masks.reshape(1, 2, 32, 32), whole]},
    )
    base = Adapter(files["base"], image=(picture(3), picture(4)), mask=(half("left"), half("right")), scale=0.7)
    adapters = (base, Adapter(files["plus"], image=picture(5), scale=0.4))
    assert_same(ours(result_of(*adapters)), expected)


def test_a_controlnet_and_an_image_prompt_together_in_either_order(files):
    """I4."""
    pipeline = reference(files, ["edges"], ["base"])
    expected = expected_of(pipeline, image=picture(1), ip_adapter_image=picture(3))
    adapters = (Adapter(files["edges"], image=picture(1)), Adapter(files["base"], image=picture(3)))
    one, other = result_of(*adapters), result_of(*adapters[::-1])
    assert_same(ours(one), expected)
    assert torch.equal(one.latents, other.latents)
    stronger = result_of(adapters[0], replace(adapters[1], scale=2.0))
    assert not torch.equal(stronger.latents, one.latents)
