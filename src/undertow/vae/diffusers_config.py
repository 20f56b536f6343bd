"""Reading and writing the `config.json` of diffusers' AutoencoderKL."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from undertow.errors import ConfigError
from undertow.json_fields import flag, is_whole, number, numbers, whole
from undertow.vae.config import VAEConfig
from undertow.vae.latent_space import LATENT_SPACES, LatentSpace

AUTOENCODER = "AutoencoderKL"
"""What diffusers' config.json calls it."""

DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"


def vae_config_from_diffusers(json: Mapping[str, Any]) -> VAEConfig:
    """The architecture and latent space that a diffusers VAE config describes; absent fields have diffusers' defaults.

    Except `force_upcast`: diffusers assumes it where the field is absent, as in SD1's config, whose weights are safe
    in float16; SDXL's config says it. Errors: `ConfigError` names the field.
    """
    if json.get("_class_name", AUTOENCODER) != AUTOENCODER:
        raise ConfigError("_class_name", json["_class_name"], f"must be {AUTOENCODER}")
    if json.get("act_fn", "silu") not in ("silu", "swish"):
        raise ConfigError("act_fn", json["act_fn"], "undertow supports only 'silu'")
    channels = json.get("block_out_channels")
    if not isinstance(channels, list | tuple) or not all(map(is_whole, channels)):
        raise ConfigError("block_out_channels", channels, "must be a list of whole numbers")
    for field, kind in (("down_block_types", DOWN), ("up_block_types", UP)):
        expected = [kind] * len(channels)
        given = json.get(field, expected)
        if not isinstance(given, list | tuple) or list(given) != expected:
            raise ConfigError(field, given, f"undertow supports {kind}, one per level")
    return VAEConfig(
        level_channels=tuple(channels),
        resnets=whole(json, "layers_per_block", 1),
        in_channels=whole(json, "in_channels", 3),
        out_channels=whole(json, "out_channels", 3),
        latent_channels=whole(json, "latent_channels", 4),
        norm_groups=whole(json, "norm_num_groups", 32),
        middle_attention=flag(json, "mid_block_add_attention", True),
        quant_conv=flag(json, "use_quant_conv", True),
        post_quant_conv=flag(json, "use_post_quant_conv", True),
        force_upcast=flag(json, "force_upcast", False),
        sample_size=_sample_size(json),
        latent_space=_read_latent_space(json),
    )


def vae_config_to_diffusers(config: VAEConfig) -> dict[str, Any]:
    """The config as diffusers' `config.json`; the preview factors have no place there."""
    space, levels = config.latent_space, len(config.level_channels)
    return {
        "_class_name": AUTOENCODER,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "down_block_types": [DOWN] * levels,
        "up_block_types": [UP] * levels,
        "block_out_channels": list(config.level_channels),
        "layers_per_block": config.resnets,
        "act_fn": "silu",
        "latent_channels": config.latent_channels,
        "norm_num_groups": config.norm_groups,
        "sample_size": config.sample_size,
        "scaling_factor": space.scale,
        "shift_factor": space.shift if space.shift else None,
        "latents_mean": None if space.mean is None else list(space.mean),
        "latents_std": None if space.std is None else list(space.std),
        "force_upcast": config.force_upcast,
        "use_quant_conv": config.quant_conv,
        "use_post_quant_conv": config.post_quant_conv,
        "mid_block_add_attention": config.middle_attention,
    }


def _read_latent_space(json: Mapping[str, Any]) -> LatentSpace:
    """The published space with these numbers, which brings its preview factors, or one without."""
    space = LatentSpace(
        scale=number(json, "scaling_factor", 0.18215),
        shift=0.0 if json.get("shift_factor") is None else number(json, "shift_factor"),
        channels=whole(json, "latent_channels", 4),
        mean=numbers(json, "latents_mean"),
        std=numbers(json, "latents_std"),
    )
    return next((known for known in LATENT_SPACES.values() if replace(known, preview_factors=None) == space), space)


def _sample_size(json: Mapping[str, Any]) -> int:
    """A side in pixels, the longer one where the file has both."""
    given = json.get("sample_size", 32)
    sides = given if isinstance(given, list | tuple) else [given]
    if not sides or not all(map(is_whole, sides)):
        raise ConfigError("sample_size", given, "must be a whole number")
    return max(sides)
