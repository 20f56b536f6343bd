"""Textual inversions in files, against diffusers' `load_textual_inversion` on the same pipelines."""

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file

import undertow
from tests.services import fresh_service, pipeline_folder, service_of
from undertow import InvalidInput

TOLERANCE = 1e-5
TEXT = "a thing b"


def vectors(width: int) -> torch.Tensor:
    return torch.randn(3, width, generator=torch.Generator().manual_seed(width))


def test_sd1_equals_diffusers(tmp_path):
    save_file({"emb_params": vectors(768)}, tmp_path / "thing.safetensors")
    pipeline = StableDiffusionPipeline.from_pretrained(pipeline_folder("sd1"))
    pipeline.load_textual_inversion(tmp_path / "thing.safetensors", token="thing")
    expected, _ = pipeline.encode_prompt(TEXT, "cpu", 1, do_classifier_free_guidance=False)
    service = fresh_service("sd1")
    plain = service.model.require_text().encode(TEXT).context
    assert service.add_embedding(tmp_path / "thing.safetensors") == ("thing",)
    found = service.model.require_text().encode(TEXT).context
    assert torch.allclose(found, expected, atol=TOLERANCE)
    assert not torch.allclose(found, plain, atol=TOLERANCE)


def test_sdxl_equals_diffusers_for_both_encoders(tmp_path):
    state = {"clip_l": vectors(768), "clip_g": vectors(1280)}
    save_file(state, tmp_path / "thing.safetensors")
    pipeline = StableDiffusionXLPipeline.from_pretrained(pipeline_folder("sdxl"))
    for key, encoder, tokenizer in (
        ("clip_l", pipeline.text_encoder, pipeline.tokenizer),
        ("clip_g", pipeline.text_encoder_2, pipeline.tokenizer_2),
    ):
        pipeline.load_textual_inversion(state[key], token="thing", text_encoder=encoder, tokenizer=tokenizer)
    expected, _, pooled, _ = pipeline.encode_prompt(TEXT, device="cpu", do_classifier_free_guidance=False)
    service = fresh_service("sdxl")
    service.add_embedding(tmp_path / "thing.safetensors", "thing")
    found = service.model.require_text().encode(TEXT)
    assert torch.allclose(found.context, expected, atol=TOLERANCE)
    assert torch.allclose(found.pooled, pooled, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("family", "tensors", "message"),
    [
        ("sd1", {"clip_l": 768, "clip_g": 1280}, r"made for SDXL \(clip_l, openclip_g\), expected one for Stable Diff"),
        (
            "sd1",
            {"emb_params": 1024},
            r"made for Stable Diffusion 2 \(openclip_h\), expected one for Stable Diffusion 1",
        ),
        ("sd1", {"emb_params": 64}, "expected 1 to .* vectors of 768 numbers; it was trained for another model"),
        ("sdxl", {"emb_params": 768}, r"made for Stable Diffusion 1 \(clip_l\), expected one for SDXL"),
    ],
)
def test_one_for_another_model_is_refused(tmp_path, family, tensors, message):
    save_file({name: vectors(width) for name, width in tensors.items()}, tmp_path / "thing.safetensors")
    service = service_of(family)
    with pytest.raises(InvalidInput, match=message):
        service.add_embedding(tmp_path / "thing.safetensors")
    assert service.model.require_text().embeddings == ()


def test_it_draws_and_the_refiner_knows_it_too(tmp_path):
    save_file({"clip_l": vectors(768), "clip_g": vectors(1280)}, tmp_path / "thing.safetensors")
    service = undertow.load(pipeline_folder("sdxl"), dtype=torch.float32, refiner=pipeline_folder("refiner"))
    settings = {"steps": 2, "size": (64, 64), "dialect": "plain"}
    without = service.generate(TEXT, **settings).latents
    service.add_embedding(tmp_path / "thing.safetensors")
    assert all(model.require_text().embeddings == ("thing",) for model in (service.model, service.refiner))
    assert not torch.equal(service.generate(TEXT, **settings).latents, without)
