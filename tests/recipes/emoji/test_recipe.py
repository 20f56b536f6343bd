"""The whole recipe, tiny: what comes out is a pipeline that undertow and diffusers draw the same with."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

import undertow
from recipes.emoji import recipe as recipes
from recipes.emoji.__main__ import VERBS
from recipes.emoji.card import FIGURES
from recipes.emoji.draw import SETTINGS, draw
from recipes.emoji.editions import FIRST
from recipes.emoji.recipe import Callbacks, quick, train_emoji
from recipes.emoji.render import Glyphs
from recipes.emoji.sections import find_section
from recipes.emoji.text_to_image import TextToImage
from recipes.emoji.tokenizer import vocabulary
from tests.recipes.emoji.tiny import TINY, quick_recipe, trained_run
from undertow.cli import main
from undertow.errors import CheckpointError
from undertow.sampling.noise import NoiseSource

# diffusers' schedulers give torch tensors to NumPy functions; torch has not followed NumPy 2 there.
pytestmark = [pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"), pytest.mark.slow]

LEVELS = 2
"""Of 255: what the issue asks for. Observed: 0 or 1, where rounding to 8 bits falls the other way."""
LARGEST_BYTES = 30 * 2**20
STEPS, GUIDANCE, SEED = 6, 3.0, 7
PROMPT = "red apple left of dog face on blue background"


@pytest.fixture(scope="module", autouse=True)
def few_pictures():
    with quick_recipe():
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder of the run, folder of the model): a copy, since a finished run exports again."""
    out = shutil.copytree(trained_run(), tmp_path_factory.mktemp("emoji") / "run")
    return out, out / "model"


@pytest.fixture(scope="module")
def service(run):
    return undertow.load(run[1], dtype=torch.float32)


def test_the_run_leaves_logs_curves_sheets_and_the_figure_of_the_autoencoder(run):
    out, _ = run
    for stage in ("autoencoder", "text_to_image", "details", "pairs", "polish", "decoder"):
        assert (out / stage / "loss.png").is_file()
        assert [path.name for path in sorted((out / stage / "samples").iterdir())] == [
            "step-000002.png",
            "step-000003.png",
        ]
    assert (out / "autoencoder" / "psnr.txt").read_text().endswith(" dB\n")


def test_the_model_is_small_complete_and_float16(run):
    _, model = run
    assert sum(file.stat().st_size for file in model.rglob("*")) < LARGEST_BYTES
    assert (model / "OFL.txt").read_text().count("SIL OPEN FONT LICENSE Version 1.1")
    card = (model / "README.md").read_text()
    for said in ("SIL Open Font License 1.1", "Noto Color Emoji: Copyright Google", "## Limits", "| autoencoder | "):
        assert said in card
    assert "Not measured yet" in find_section(card, FIGURES)
    index = json.loads((model / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    loaded = undertow.load(model, device="meta").model
    assert loaded.text.vocabulary == vocabulary(FIRST.mix)


def test_undertow_and_diffusers_draw_the_same(run, service):
    """On the grid that both have to the last digit: diffusers rounds the timesteps of Karras' one."""
    pipeline = StableDiffusionPipeline.from_pretrained(run[1]).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    shape = (TINY.latent_channels, TINY.unet().sample_size, TINY.unet().sample_size)
    theirs = pipeline(
        PROMPT, num_inference_steps=STEPS, guidance_scale=GUIDANCE, latents=NoiseSource([SEED]).draw(shape)
    ).images[0]
    ours = service.generate(
        PROMPT, steps=STEPS, guidance_scale=GUIDANCE, seed=SEED, schedule="simple", sampler="dpmpp_2m"
    ).images[0]
    theirs, ours = np.asarray(theirs, dtype=int), np.asarray(ours, dtype=int)
    assert ours.shape == (64, 64, 3)
    assert np.abs(theirs - ours).max() <= LEVELS
    assert len(np.unique(ours)) > 10, "a flat picture compares nothing"


def test_the_evaluation_draws_what_generate_draws(service):
    (text,) = service.model.text.encoders
    settings = replace(SETTINGS, steps=STEPS, guidance=GUIDANCE)
    captions = [PROMPT, "owl", "banana on a pink background"]
    drawn = draw(TextToImage(text, service.unet), service.vae, captions, [SEED, 0, 3], settings=settings)
    for caption, seed, picture in zip(captions, [SEED, 0, 3], drawn, strict=True):
        alone = service.generate(caption, steps=STEPS, guidance_scale=GUIDANCE, seed=seed).images[0]
        difference = np.asarray(alone, dtype=int) - picture.permute(1, 2, 0).numpy()
        assert np.abs(difference).max() <= LEVELS


def test_words_it_never_learned_are_named_beside_the_picture(service):
    result = service.generate("(red appel:1.3) on white background", steps=1)
    assert len(result.images) == 1
    assert any("'appel' (near: 'apple' as in red apple, green apple)" in line for line in result.report.decisions)
    plain = service.generate("(red apple:1.3) on white background", steps=1)
    assert not any("never learned" in line for line in plain.report.decisions)


def test_a_finished_run_only_exports_again_and_another_recipe_is_refused(run):
    out, model = run
    before = (model / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    stages: list[str] = []
    train_emoji(out, TINY, callbacks=Callbacks(on_stage=lambda name, total: stages.append(name)))
    assert "latents" not in stages
    assert (model / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == before
    with pytest.raises(CheckpointError, match="latent_channels was 4 and is now 8"):
        train_emoji(out, replace(TINY, latent_channels=8))


def test_quick_is_the_same_model_with_less_training():
    full, short = recipes.EmojiRecipe(), quick(recipes.EmojiRecipe())
    assert short.unet() == full.unet()
    assert short.text_to_image.steps < full.text_to_image.steps


@pytest.mark.slow
def test_the_verb_trains_and_says_what_to_do_next(run, tmp_path, monkeypatch, capsys):
    """From where a run was stopped: its last stage is trained again, and gives the same model."""
    shutil.copytree(run[0], tmp_path / "run")
    for made in ("pairs", "model"):
        shutil.rmtree(tmp_path / "run" / made)
    monkeypatch.setattr(recipes, "quick", lambda recipe: TINY)
    threads = str(torch.get_num_threads())  # other ones would sum in another order
    assert main(["train", "--quick", "--out", str(tmp_path / "run"), "--threads", threads], VERBS) == 0
    said = capsys.readouterr().out
    assert f"trained: {tmp_path / 'run' / 'model'}" in said
    assert "undertow generate --model" in said
    assert (tmp_path / "run" / "model" / "words.json").is_file()
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "run" / "model" / weights).read_bytes() == (run[1] / weights).read_bytes()


def test_a_missing_font_is_refused_before_any_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(recipes, "Glyphs", Glyphs)
    assert main(["train", "--font", str(tmp_path / "none.ttf"), "--out", str(tmp_path / "run")], VERBS) == 2
    assert "apt install fonts-noto-color-emoji" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
