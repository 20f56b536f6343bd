"""The autoencoder against diffusers', with random weights: case V1 of the parity plan."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from diffusers import AutoencoderKL as Twin

from tests.golden.conftest import EFFECT, T0, change, largest_difference
from tests.vae.minis import MVAE, build, latents_for, pixels_for
from undertow.vae.autoencoder import AutoencoderKL
from undertow.vae.config import VAEConfig
from undertow.vae.diffusers_config import vae_config_from_diffusers, vae_config_to_diffusers
from undertow.vae.latent_space import PLAYGROUND_V25
from undertow.vae.latent_values import latents_from_model
from undertow.vae.precision import decode_safely, encode_safely

# Written out by hand: were it made from our config, a mistake in the translation would cancel.
MVAE_JSON = {
    "block_out_channels": [32, 64, 128, 128],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "sample_size": 64,
    "force_upcast": False,
}

VARIANTS = {
    "MVAE": (MVAE, MVAE_JSON),
    "without 1x1 convolutions": (
        replace(MVAE, quant_conv=False, post_quant_conv=False),
        {**MVAE_JSON, "use_quant_conv": False, "use_post_quant_conv": False},
    ),
    "without attention": (replace(MVAE, middle_attention=False), {**MVAE_JSON, "mid_block_add_attention": False}),
    "other numbers": (
        VAEConfig(
            level_channels=(16, 24, 32), resnets=1, latent_channels=8, norm_groups=8, sample_size=32,
            latent_space=replace(MVAE.latent_space, scale=0.3, shift=0.1, channels=8, preview_factors=None),
        ),
        {
            "block_out_channels": [16, 24, 32],
            "down_block_types": ["DownEncoderBlock2D"] * 3,
            "up_block_types": ["UpDecoderBlock2D"] * 3,
            "layers_per_block": 1,
            "latent_channels": 8,
            "norm_num_groups": 8,
            "scaling_factor": 0.3,
            "shift_factor": 0.1,
            "force_upcast": False,
        },
    ),
}  # fmt: skip


@cache
def pair(name: str) -> tuple[AutoencoderKL, Twin]:
    config, json = VARIANTS[name]
    ours, twin = build(config), Twin(**json).eval()
    twin.load_state_dict(ours.state_dict())
    return ours, twin


@pytest.mark.parametrize("size", [(8, 6), (5, 7)])
@pytest.mark.parametrize("name", VARIANTS)
def test_decode_equals_diffusers(name, size):
    ours, twin = pair(name)
    latents = latents_for(ours.config, *size, batch=2)
    reference = twin.decode(latents).sample
    assert largest_difference(ours.decode(latents), reference) <= T0
    assert largest_difference(decode_safely(ours, latents).pixels, reference) <= T0


@pytest.mark.parametrize("size", [(64, 48), (40, 56)])
@pytest.mark.parametrize("name", VARIANTS)
def test_encode_equals_diffusers(name, size):
    ours, twin = pair(name)
    pixels = pixels_for(ours.config, *size, batch=2)
    reference = twin.encode(pixels).latent_dist
    for posterior in (ours.encode(pixels), encode_safely(ours, pixels).posterior):
        assert largest_difference(posterior.mean, reference.mean) <= T0
        assert largest_difference(posterior.logvar, reference.logvar) <= T0
        noise = torch.randn(reference.mean.shape, generator=torch.Generator().manual_seed(3))
        assert largest_difference(posterior.sample(noise), reference.mean + reference.std * noise) <= T0
        assert torch.equal(posterior.mode(), posterior.mean)


@pytest.mark.parametrize("part", ["decoder.mid_block.attentions.0.to_out.0", "decoder.up_blocks.3.resnets.2.conv2"])
def test_parts_under_comparison_matter(part):
    """Guards the comparisons above: without this part the picture is another one."""
    ours, _ = pair("MVAE")
    latents = latents_for(MVAE, 8, 8)
    without = build(MVAE)
    without.get_submodule(part).weight.zero_()
    assert change(without.decode(latents), ours.decode(latents)) > EFFECT


def test_published_network_has_the_published_names_and_count():
    with torch.device("meta"):
        ours = AutoencoderKL(VAEConfig.sdxl())
        twin = Twin(**{k: v for k, v in vae_config_to_diffusers(VAEConfig.sdxl()).items() if k != "_class_name"})
    names = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    assert names == {name: tensor.shape for name, tensor in twin.state_dict().items()}
    assert len(names) == 248
    assert sum(parameter.numel() for parameter in ours.parameters()) == 83_653_863


@pytest.mark.parametrize("name", VARIANTS)
def test_config_reads_what_diffusers_writes(name):
    config, json = VARIANTS[name]
    written = dict(Twin(**json).config)
    assert vae_config_from_diffusers(json) == vae_config_from_diffusers(written) == config
    ours = vae_config_to_diffusers(config)
    assert {key: ours[key] for key in ours if key in written} == {
        key: list(value) if isinstance(value, tuple) else value for key, value in written.items() if key in ours
    }


def test_latents_are_scaled_as_by_diffusers_pipelines():
    """StableDiffusionXLPipeline.__call__: latents * std / scaling_factor + mean before decoding."""
    space = PLAYGROUND_V25
    latents = latents_for(MVAE, 4, 4)
    mean, std = (torch.tensor(numbers).view(1, 4, 1, 1) for numbers in (space.mean, space.std))
    assert torch.allclose(latents_from_model(space, latents), latents * std / space.scale + mean, atol=1e-5)


def test_tiles_agree_where_those_of_diffusers_do_not():
    """G7: diffusers' tiles each have statistics of their own. benchmarks/vae_tiling.py shows it as a picture."""
    ours, _ = pair("MVAE")
    twin = Twin(**MVAE_JSON).eval()
    twin.load_state_dict(ours.state_dict())
    slope = torch.linspace(-2, 2, 16)
    latents = (slope[None, :] + slope[:, None]) * torch.tensor([1.0, -0.5, 0.3, 0.8])[None, :, None, None]
    whole = twin.decode(latents).sample
    tiled = decode_safely(ours, latents, budget_bytes=5 * 2**20)
    twin.enable_tiling()
    one_step_of_eight_bits = 2 / 255
    assert tiled.report.tiled
    assert (tiled.pixels - whole).abs().max() < 1e-4
    assert (twin.decode(latents).sample - whole).abs().max() > 20 * one_step_of_eight_bits
