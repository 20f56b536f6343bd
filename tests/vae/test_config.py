"""The autoencoder's config and its translation; golden/test_vae.py compares with what diffusers writes."""

import pytest

from undertow.errors import ConfigError
from undertow.vae.config import VAEConfig
from undertow.vae.diffusers_config import vae_config_from_diffusers, vae_config_to_diffusers
from undertow.vae.latent_space import PLAYGROUND_V25, SD, SDXL, LatentSpace

JSON = {"block_out_channels": [32, 64]}


@pytest.mark.parametrize("config", [VAEConfig.sd(), VAEConfig.sdxl(), VAEConfig(latent_space=PLAYGROUND_V25)])
def test_round_trip_keeps_the_preview_factors_of_published_spaces(config):
    assert vae_config_from_diffusers(vae_config_to_diffusers(config)) == config


def test_presets():
    assert (VAEConfig.sd().latent_space, VAEConfig.sdxl().latent_space) == (SD, SDXL)
    assert VAEConfig.sdxl().force_upcast
    assert not VAEConfig.sd().force_upcast
    assert VAEConfig.sd().factor == 8


def test_absent_upcast_means_no_upcast():
    assert not vae_config_from_diffusers(JSON).force_upcast
    assert vae_config_from_diffusers({**JSON, "force_upcast": True}).force_upcast


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("_class_name", "AutoencoderTiny"),
        ("act_fn", "relu"),
        ("block_out_channels", None),
        ("block_out_channels", [32, "64"]),
        ("down_block_types", ["AttnDownEncoderBlock2D", "DownEncoderBlock2D"]),
        ("up_block_types", ["UpDecoderBlock2D"]),
        ("layers_per_block", 2.5),
    ],
)
def test_what_is_not_supported_is_named(field, value):
    with pytest.raises(ConfigError, match=field):
        vae_config_from_diffusers({**JSON, field: value})


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("level_channels", {"level_channels": ()}),
        ("level_channels", {"level_channels": (32, 40)}),
        ("resnets", {"resnets": 0}),
        ("norm_groups", {"norm_groups": 0}),
        ("latent_space.channels", {"latent_channels": 16}),
    ],
)
def test_impossible_configs_are_refused(field, values):
    with pytest.raises(ConfigError, match=field):
        VAEConfig(**values)


def test_other_channels_need_another_space():
    assert VAEConfig(latent_channels=16, latent_space=LatentSpace(scale=0.36, channels=16)).latent_channels == 16
