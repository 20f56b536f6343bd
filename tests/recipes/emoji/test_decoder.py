"""The last stage: a decoder that learns from what the U-Net predicts; the encoder stays."""

from dataclasses import replace

import pytest
import torch

from recipes.emoji.autoencoder import vae_config
from recipes.emoji.decoder import DecoderBatch, predicted, train_decoder
from recipes.emoji.editions import FIRST
from recipes.emoji.text_to_image import OBJECTIVE, new_model, token_ids
from recipes.emoji.tokenizer import save_tokenizer
from tests.golden.minis import randomize
from tests.recipes.emoji.tiny import SETTINGS, TINY, drawn_glyphs
from tests.vae.minis import build
from undertow.encoders.tokenizer import FolderTokenizer


@pytest.fixture
def model(tmp_path):
    save_tokenizer(tmp_path / "tokenizer")
    tokenizer = FolderTokenizer(tmp_path / "tokenizer")
    model = new_model(TINY.unet(), layers=TINY.text_layers, heads=TINY.text_heads, tokenizer=tokenizer, seed=0)
    randomize(model.unet, 0)
    return model


@torch.no_grad()
def test_the_u_net_s_estimate_is_that_of_its_v_prediction(model):
    z = torch.randn(3, TINY.latent_channels, 8, 8)
    ids = torch.tensor([token_ids(text, model.text.tokenizer) for text in ("owl", "key on blue background", "")])
    sigma = torch.tensor([0.1, 1.0, 4.0])
    batch = DecoderBatch(x=torch.zeros(3, 3, 64, 64), ids=ids, sigma=sigma, generator=torch.Generator().manual_seed(1))
    found = predicted(model, z, batch)
    scale, sigma = sigma[:, None, None, None], sigma.double()
    x = z + scale * torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    a = 1 / (1 + scale**2).sqrt()
    v = model(a * x, OBJECTIVE.schedule.sigma_to_timestep(sigma).float(), ids)
    torch.testing.assert_close(found, a * (a * x) - scale * a * v, rtol=1e-4, atol=1e-4)


def test_the_decoder_learns_and_latents_stay_what_they_were(model, tmp_path):
    vae = build(vae_config(TINY.level_channels, TINY.latent_channels))
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    settings = replace(SETTINGS, optimizer="muon")
    trained = train_decoder(vae, model, settings, tmp_path / "decoder", drawn_glyphs(), edition=FIRST)
    changed = {name.split(".")[0] for name, tensor in trained.state_dict().items() if not tensor.equal(before[name])}
    assert changed == {"decoder", "post_quant_conv"}
