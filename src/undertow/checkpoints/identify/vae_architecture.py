"""Derives the architecture of a VAE from the names and shapes of its tensors."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from undertow.checkpoints.files.model_folder import CONFIG
from undertow.checkpoints.files.weights import Described
from undertow.checkpoints.identify.families import FamilyName
from undertow.checkpoints.identify.self_description import described_vae
from undertow.checkpoints.keymap.contents import Contents
from undertow.errors import ConfigError, UnknownCheckpoint
from undertow.vae.config import VAEConfig

Shapes = Mapping[str, tuple[int, ...]]


def vae_config_of(weights: Described, contents: Contents, family: FamilyName) -> VAEConfig | None:
    """The config of a file's VAE, as its header describes it or as shapes tell it; `None` where there is none. Errors:
    `UnknownCheckpoint`, `CorruptFile`."""
    if "vae" not in contents.parts:
        return None
    described = described_vae(weights)
    if described is not None:
        return described
    return derive_vae_config(weights.path, contents.parts["vae"].shapes(weights.tensors), family)


def derive_vae_config(path: Path, shapes: Shapes, family: FamilyName) -> VAEConfig:
    """The config of an AutoencoderKL. shapes: by diffusers' names. family: decides the latent space.

    Errors: `UnknownCheckpoint`.
    """
    base = VAEConfig.sdxl() if family in ("sdxl", "sdxl_refiner") else VAEConfig.sd()
    try:
        levels = _count(shapes, "encoder.down_blocks.{}.resnets.0.conv1.weight")
        return replace(
            base,
            level_channels=tuple(
                shapes[f"encoder.down_blocks.{level}.resnets.0.conv2.weight"][0] for level in range(levels)
            ),
            resnets=_count(shapes, "encoder.down_blocks.0.resnets.{}.conv1.weight"),
            in_channels=shapes["encoder.conv_in.weight"][1],
            out_channels=shapes["decoder.conv_out.weight"][0],
            latent_channels=shapes["decoder.conv_in.weight"][1],
            middle_attention="decoder.mid_block.attentions.0.to_q.weight" in shapes,
            quant_conv="quant_conv.weight" in shapes,
            post_quant_conv="post_quant_conv.weight" in shapes,
        )
    except (KeyError, IndexError, ConfigError) as err:
        described = path.parent / CONFIG
        beside = f"give its folder, whose {CONFIG} describes it" if described.is_file() else ""
        remedy = beside or "undertow reads AutoencoderKL with 4 latent channels, and others by their config.json"
        raise UnknownCheckpoint(path, f"a VAE of an unknown architecture ({err})", remedy) from err


def _count(shapes: Shapes, pattern: str) -> int:
    number = 0
    while pattern.format(number) in shapes:
        number += 1
    return number
