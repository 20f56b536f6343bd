"""The first stage: latents of mean 0 and variance 1 without a change to any reconstruction, pictures by the step."""

from itertools import permutations

import pytest
import torch
from diffusers import AutoencoderKL

from recipes.emoji.autoencoder import (
    autoencoder_loss,
    change_looks,
    normalize_latents,
    psnr,
    random_crops,
    read_autoencoder,
    scenes_at,
    vae_config,
)
from recipes.emoji.recipe import CRISP_RECIPE, EmojiRecipe
from tests.recipes.emoji.tiny import TINY, drawn_glyphs
from tests.vae.minis import build
from undertow.embedded import embedded_models
from undertow.errors import ConfigError
from undertow.pictures.pixels import from_uint8
from undertow.training.randomness import generator_for

ROUNDING = 1e-3
"""Of pixels in [-1, 1]: float32 through two networks whose weights are scaled."""


@pytest.fixture(scope="module")
def pictures():
    return from_uint8(scenes_at("test", 0, 24, drawn_glyphs()))


@pytest.fixture
def vae():
    return build(vae_config(TINY.level_channels, TINY.latent_channels))


@torch.no_grad()
def test_normalizing_latents_leaves_reconstructions_unchanged(vae, pictures):
    before_latents = vae.encode(pictures).mean
    before = vae.decode(before_latents)
    spread = vae.encode(pictures).logvar.exp().sqrt() / before_latents.std((0, 2, 3))[None, :, None, None]
    assert float((before_latents.std((0, 2, 3)) - 1).abs().max()) > 0.1, "nothing to normalize"
    normalize_latents(vae, pictures)
    posterior = vae.encode(pictures)
    torch.testing.assert_close(posterior.mean.mean((0, 2, 3)), torch.zeros(TINY.latent_channels), atol=1e-4, rtol=0)
    torch.testing.assert_close(posterior.mean.std((0, 2, 3)), torch.ones(TINY.latent_channels), atol=1e-4, rtol=0)
    torch.testing.assert_close(vae.decode(posterior.mean), before, atol=ROUNDING, rtol=ROUNDING)
    # The posterior's own spread is scaled with its mean.
    torch.testing.assert_close(posterior.logvar.exp().sqrt(), spread, rtol=1e-3, atol=1e-5)


def test_pictures_belong_to_their_step():
    first = scenes_at("test", 1, 4, drawn_glyphs())
    assert first.equal(scenes_at("test", 1, 4, drawn_glyphs()))
    assert not first.equal(scenes_at("test", 2, 4, drawn_glyphs()))
    assert not first.equal(scenes_at("other", 1, 4, drawn_glyphs()))


def test_a_crop_is_a_part_of_its_own_picture(pictures):
    crops = random_crops(pictures, 20, generator_for(0, "crops"))
    assert crops.shape == (len(pictures), 3, 20, 20)
    places = []
    for picture, crop in zip(pictures, crops, strict=True):
        windows = picture.unfold(1, 20, 1).unfold(2, 20, 1)
        same = (windows == crop[:, None, None]).all(-1).all(-1).all(0)
        assert bool(same.any())
        if int(same.sum()) == 1:  # plain background may stand in many places
            places.append(tuple(same.nonzero()[0].tolist()))
    assert len(set(places)) > 10, "not always the same corner"


def test_some_pictures_change_their_looks(pictures):
    changed = change_looks(pictures, generator_for(0, "looks", 3))
    kept = [bool(one.equal(other)) for one, other in zip(pictures, changed, strict=True)]
    assert 0 < kept.count(False) < len(kept) / 2
    for one, other in zip(pictures, changed, strict=True):
        assert one.flatten().sort().values.equal(other.flatten().sort().values), "the same numbers at other places"
    which = kept.index(False)
    one, other = pictures[which], changed[which]
    mirrored = [bool(other.equal(one[list(order)].flip(-1))) for order in permutations(range(3))]
    assert mirrored.count(True) == 1, "mirrored, its channels in another order"
    many = change_looks(pictures[:1].repeat(400, 1, 1, 1), generator_for(0, "many"))
    share = sum(not one.equal(pictures[0]) for one in many) / 400
    assert share == pytest.approx(0.25, abs=0.08)  # standard deviation 0.022


@torch.no_grad()
def test_the_loss_is_both_errors_and_the_divergence_written_out(vae, pictures):
    x = pictures[:4]
    for weight in (1e-6, 0.25):  # by default the divergence is too small a part to be seen
        loss = autoencoder_loss(vae, x, generator_for(0, "loss"), kl_weight=weight)
        posterior = vae.encode(x)
        noise = torch.randn(posterior.mean.shape, generator=generator_for(0, "loss"))
        error = vae.decode(posterior.mean + posterior.logvar.exp().sqrt() * noise) - x
        normal = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
        ours = torch.distributions.Normal(posterior.mean, posterior.logvar.exp().sqrt())
        divergence = torch.distributions.kl_divergence(ours, normal).mean()
        assert loss.item() == pytest.approx((error.abs() + error.square()).mean().item() + weight * divergence.item())


def test_the_loss_counts_error_and_divergence(vae, pictures):
    loss = autoencoder_loss(vae, pictures[:4], generator_for(0, "loss"))
    assert loss.item() > 0
    assert loss.item() == autoencoder_loss(vae, pictures[:4], generator_for(0, "loss")).item()
    loss.backward()
    assert all(parameter.grad is not None for parameter in vae.parameters())


@torch.no_grad()
def test_psnr_is_that_of_eight_bit_pictures(vae, pictures):
    rebuilt = vae.decode(vae.encode(pictures).mean).clamp(-1, 1)
    error = float(((rebuilt - pictures) * 127.5).square().mean())
    assert psnr(vae, pictures) == pytest.approx(float(10 * torch.log10(torch.tensor(255**2 / error))), abs=0.01)


@torch.no_grad()
def test_the_second_edition_s_autoencoder_rebuilds_as_diffusers_does():
    folder = embedded_models()["emoji"] / "vae"
    vae, peer = read_autoencoder(folder, CRISP_RECIPE.vae()), AutoencoderKL.from_pretrained(folder)
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = vae.encode(x).mean
    assert (latents - peer.encode(x).latent_dist.mean).abs().max() <= ROUNDING
    assert (vae.decode(latents) - peer.decode(latents).sample).abs().max() <= ROUNDING


def test_an_autoencoder_of_another_architecture_is_refused():
    with pytest.raises(ConfigError, match="architecture of the recipe"):
        read_autoencoder(embedded_models()["emoji"] / "vae", EmojiRecipe().vae())
