"""The last stage: a decoder that learns from what the model draws; the encoder stays."""

from dataclasses import replace

import pytest
import torch

from recipes.emoji.autoencoder import vae_config
from recipes.emoji.decoder import redraw_pictures, train_decoder
from recipes.emoji.draw import redraw
from recipes.emoji.editions import FIRST
from recipes.emoji.text_to_image import new_model
from recipes.emoji.tokenizer import save_tokenizer
from tests.golden.minis import randomize
from tests.recipes.emoji.tiny import SETTINGS, TINY, drawn_glyphs
from tests.vae.minis import build
from undertow.encoders.tokenizer import FolderTokenizer
from undertow.pictures.pixels import from_uint8


@pytest.fixture
def model(tmp_path):
    save_tokenizer(tmp_path / "tokenizer")
    tokenizer = FolderTokenizer(tmp_path / "tokenizer")
    model = new_model(TINY.unet(), layers=TINY.text_layers, heads=TINY.text_heads, tokenizer=tokenizer, seed=0)
    randomize(model.unet, 0)
    return model


@pytest.fixture
def vae():
    return build(vae_config(TINY.level_channels, TINY.latent_channels))


def test_what_is_drawn_anew_from_a_late_step_is_nearly_the_picture(model, vae):
    """Whose noise is little; from an early step nothing of it is left to see."""
    x = torch.randn(2, 3, 64, 64).clamp(-1, 1)
    z = vae.encode(x).mean
    late, early = (redraw(model, z, ["owl", ""], [0, 1], step) for step in (19, 0))
    assert (late - z).abs().mean() < 0.1 < 1 < (early - z).abs().mean()


def test_pictures_drawn_anew_come_with_the_latents_they_should_have_had(model, vae):
    found = redraw_pictures(model, vae, 20, drawn_glyphs(), edition=FIRST)
    assert found.pictures.shape == (20, 3, 64, 64)
    z = vae.encode(from_uint8(found.pictures)).mean
    own = (found.latents.float() - z).square().mean((1, 2, 3))
    others = (found.latents.float() - z.roll(1, 0)).square().mean((1, 2, 3))
    assert (own < others).float().mean() > 0.7


def test_the_decoder_learns_and_latents_stay_what_they_were(model, vae, tmp_path):
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    settings = replace(SETTINGS, optimizer="muon")
    redrawn = redraw_pictures(model, vae, 8, drawn_glyphs(), edition=FIRST)
    trained = train_decoder(vae, redrawn, settings, tmp_path / "decoder", drawn_glyphs(), edition=FIRST)
    changed = {name.split(".")[0] for name, tensor in trained.state_dict().items() if not tensor.equal(before[name])}
    assert changed == {"decoder", "post_quant_conv"}
