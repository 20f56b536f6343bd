"""The recipe of the model in few steps, tiny: two distillations, a folder that is drawn by its own sampler."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import undertow
from recipes.emoji import turbo as turbo_recipe
from recipes.emoji.__main__ import VERBS
from recipes.emoji.editions import FIRST
from recipes.emoji.turbo import TurboRecipe, train_turbo, training_pictures
from recipes.emoji.turbo_ship import ship
from tests.recipes.emoji.tiny import SETTINGS, DrawnGlyphs, drawn_glyphs, trained_run
from undertow.assembled import assembled
from undertow.cli import main
from undertow.training.log import read_records

VAE_WEIGHTS = "vae/diffusion_pytorch_model.safetensors"

RECIPE = TurboRecipe(pictures=8)
RECIPE = replace(
    RECIPE,
    guidance=replace(RECIPE.guidance, fit=replace(SETTINGS, steps=2)),
    tuning=replace(RECIPE.tuning, fit=replace(SETTINGS, steps=2)),
    narrower=1,  # the tiny one has no channels to spare
    autoencoder=replace(SETTINGS, steps=2),
    redrawn=4,
    decoder=replace(SETTINGS, steps=2),
)


@pytest.mark.slow
def test_guidance_is_distilled_and_the_student_tuned(tmp_path, monkeypatch, capsys):
    stages: list[str] = []
    model = train_turbo(
        trained_run() / "model", tmp_path, RECIPE, FIRST, drawn_glyphs(), on_stage=lambda name, _: stages.append(name)
    )
    assert (stages, model) == (["guided", "redrawn", "autoencoder", "decoder", "turbo"], tmp_path / "turbo" / "model")
    service = undertow.load(model)
    assert service.model.sampler.sampler == "lcm"
    assert service.model.text.vocabulary is not None, "it still names words that it does not know"
    assert service.generate("owl", steps=2, guidance_scale=1.0).images[0].size == (64, 64)
    # The verb goes on with the same run, which has nothing left to do.
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    monkeypatch.setattr(turbo_recipe, "TurboRecipe", lambda: RECIPE)
    monkeypatch.setattr("recipes.emoji.render.Glyphs", DrawnGlyphs)
    assert main(["turbo", "--model", str(trained_run() / "model"), "--out", str(tmp_path)], VERBS) == 0
    assert f"trained: {model}" in capsys.readouterr().out
    assert weights.read_bytes() == before
    assert [record.step for record in read_records(tmp_path / "turbo" / "log.jsonl")] == [1, 2]


def test_pictures_stand_on_cells_with_their_captions():
    few = training_pictures(6, FIRST, drawn_glyphs())
    assert few.pixels.shape == (6, 3, 64, 64)
    assert len(few.captions) == len(few.crops) == 6
    assert few.pixels.equal(training_pictures(6, FIRST, drawn_glyphs()).pixels)


@pytest.mark.slow
def test_what_ships_is_the_student_within_its_rank(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERTOW_CACHE", str(tmp_path / "cache"))
    shutil.copytree(trained_run() / "model", tmp_path / "models/emoji")
    shutil.copytree(trained_run() / "model", tmp_path / "student")
    weights = tmp_path / "student/unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    changed = "mid_block.attentions.0.proj_in.weight"
    tensors[changed] = tensors[changed] + torch.randn(tensors[changed].shape, dtype=tensors[changed].dtype)
    save_file(tensors, weights, {"format": "pt"})
    assert ship(tmp_path / "student", tmp_path / "models", rank=1000) == pytest.approx(1, abs=1e-4)
    assert not (tmp_path / "models/emoji-turbo/vae").exists(), "it is the base's"
    whole = assembled(tmp_path / "models/emoji-turbo")
    got = load_file(whole / "unet/diffusion_pytorch_model.safetensors")
    assert all(torch.allclose(got[name].float(), tensors[name].float(), atol=2e-3) for name in tensors)
    assert "--lora turbo" in (tmp_path / "models/emoji/adapters/turbo.md").read_text()

    vae = load_file(tmp_path / "student" / VAE_WEIGHTS)
    save_file({**vae, "decoder.conv_out.bias": torch.ones(3)}, tmp_path / "student" / VAE_WEIGHTS, {"format": "pt"})
    ship(tmp_path / "student", tmp_path / "models", rank=1)
    other = assembled(tmp_path / "models/emoji-turbo")
    assert (other / VAE_WEIGHTS).read_bytes() == (tmp_path / "student" / VAE_WEIGHTS).read_bytes()
    assert (whole / VAE_WEIGHTS).read_bytes() != (other / VAE_WEIGHTS).read_bytes()
