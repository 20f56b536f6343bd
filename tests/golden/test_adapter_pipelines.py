"""Adapters beside the weights, end to end: the pictures of diffusers' ControlNet and IP-Adapter pipelines from the same
noise."""

from dataclasses import replace

import diffusers
import pytest
import torch

import undertow
from tests.adapters.beside import control_file, half, picture, prompt_file
from tests.golden.pipelines import save_pipeline
from tests.golden.test_requests import DRAWN, SEED, STEPS, assert_same_picture, draws, pipeline_of
from undertow import Adapter

PROMPT = "red apple"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_pipeline("sd1", tmp_path_factory.mktemp("sd1") / "pipeline")


@pytest.fixture(scope="module")
def service(folder):
    return undertow.load(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def files(service, tmp_path_factory):
    place = tmp_path_factory.mktemp("adapters")
    return {
        "edges": control_file(place / "edges", service.unet, seed=1),
        "pose": control_file(place / "pose", service.unet, seed=2),
        "base": prompt_file(place / "base.safetensors", service.unet, seed=3),
        "plus": prompt_file(place / "plus.safetensors", service.unet, seed=4, variant="plus"),
    }


def reference(folder, files, controls=(), prompts=()):
    nets = [diffusers.ControlNetModel.from_pretrained(files[name]) for name in controls]
    if nets:
        nets = nets[0] if len(nets) == 1 else nets
        pipeline = pipeline_of(diffusers.StableDiffusionControlNetPipeline, folder, controlnet=nets)
    else:
        pipeline = pipeline_of(diffusers.StableDiffusionPipeline, folder)
    if prompts:
        place = files[prompts[0]].parent
        names = [files[name].name for name in prompts]
        pipeline.load_ip_adapter(str(place), subfolder="", weight_name=names, image_encoder_folder="image_encoder")
    return pipeline


def theirs(pipeline, **settings):
    return pipeline(
        PROMPT,
        height=32,
        width=32,
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(SEED),
        **settings,
    ).images[0]


def ours(service, *adapters):
    return service.generate(PROMPT, **DRAWN, adapters=adapters, latents=draws(1)[0]).images[0]


CONTROL = {
    "plain": ({}, {}),
    "weaker": ({"controlnet_conditioning_scale": 0.4}, {"scale": 0.4}),
    "guess mode": ({"guess_mode": True}, {"control_mode": "control"}),
    "some steps": ({"control_guidance_start": 0.2, "control_guidance_end": 0.7}, {"start": 0.2, "end": 0.7}),
}


@pytest.mark.parametrize("case", CONTROL)
def test_a_controlnet(folder, service, files, case):
    """C3."""
    asked, given = CONTROL[case]
    found = ours(service, Adapter(files["edges"], image=picture(1), **given))
    assert_same_picture(found, theirs(reference(folder, files, ["edges"]), image=picture(1), **asked))


def test_two_controlnets(folder, service, files):
    adapters = (Adapter(files["edges"], image=picture(1)), Adapter(files["pose"], image=picture(2), scale=0.5))
    expected = theirs(
        reference(folder, files, ["edges", "pose"]),
        image=[picture(1), picture(2)],
        controlnet_conditioning_scale=[1.0, 0.5],
    )
    assert_same_picture(ours(service, *adapters), expected)


@pytest.mark.parametrize("name", ["base", "plus"])
def test_an_image_prompt(folder, service, files, name):
    """I1 and I3: also of no picture, for the unconditional side."""
    pipeline = reference(folder, files, prompts=[name])
    pipeline.set_ip_adapter_scale(0.7)
    found = ours(service, Adapter(files[name], image=picture(3), scale=0.7))
    assert_same_picture(found, theirs(pipeline, ip_adapter_image=picture(3)))


def test_two_image_prompts_one_with_masked_pictures(folder, service, files):
    """I2."""
    pipeline = reference(folder, files, prompts=["base", "plus"])
    pipeline.set_ip_adapter_scale([[0.7, 0.7], 0.4])
    masks = diffusers.image_processor.IPAdapterMaskProcessor().preprocess([half("left"), half("right")], 32, 32)
    whole = torch.ones(1, 1, 32, 32)
    expected = theirs(
        pipeline,
        ip_adapter_image=[[picture(3), picture(4)], [picture(5)]],
        cross_attention_kwargs={"ip_adapter_masks": [masks.reshape(1, 2, 32, 32), whole]},
    )
    base = Adapter(files["base"], image=(picture(3), picture(4)), mask=(half("left"), half("right")), scale=0.7)
    adapters = (base, Adapter(files["plus"], image=picture(5), scale=0.4))
    assert_same_picture(ours(service, *adapters), expected)


def test_a_controlnet_and_an_image_prompt_together_in_either_order(folder, service, files):
    """I4."""
    pipeline = reference(folder, files, ["edges"], ["base"])
    expected = theirs(pipeline, image=picture(1), ip_adapter_image=picture(3))
    adapters = [Adapter(files["edges"], image=picture(1)), Adapter(files["base"], image=picture(3))]
    assert_same_picture(ours(service, *adapters), expected)
    found = [
        service.generate(PROMPT, **DRAWN, adapters=order, latents=draws(1)[0])
        for order in (tuple(adapters), tuple(adapters[::-1]))
    ]
    assert torch.equal(found[0].latents, found[1].latents)
    stronger = service.generate(PROMPT, **DRAWN, adapters=(adapters[0], replace(adapters[1], scale=2.0)))
    assert not torch.equal(stronger.latents, found[0].latents)
