"""The architecture as JSON in a file's header, which undertow writes into single files and reads back.

Other tools ignore it. Like everything in a header it is untrusted: strict loading refuses a config that does not fit
the tensors.
"""

import json
from collections.abc import Mapping
from typing import Any

from undertow.checkpoints.files.weights import Described
from undertow.checkpoints.keymap.prefixes import TextKind
from undertow.errors import ConfigError, CorruptFile
from undertow.unet.config import UNetConfig
from undertow.unet.diffusers_config import config_from_diffusers, config_to_diffusers
from undertow.vae.config import VAEConfig
from undertow.vae.diffusers_config import vae_config_from_diffusers, vae_config_to_diffusers

UNET, VAE, TEXT = "undertow.unet_config", "undertow.vae_config", "undertow.text_config"
MAX_CHARACTERS = 100_000


def describe(
    *, unet: UNetConfig | None = None, vae: VAEConfig | None = None, text: Mapping[TextKind, Any] | None = None
) -> dict[str, str]:
    """Header fields that describe the networks in a file. text: transformers' config by kind of encoder."""
    fields: dict[str, Any] = {
        UNET: None if unet is None else config_to_diffusers(unet),
        VAE: None if vae is None else vae_config_to_diffusers(vae),
        TEXT: text or None,
    }
    return {name: json.dumps(value) for name, value in fields.items() if value is not None}


def described_unet(weights: Described) -> UNetConfig | None:
    """The U-Net's config in a header, if there is one. Errors: `CorruptFile` for an invalid one."""
    found = _read(weights, UNET)
    try:
        return None if found is None else config_from_diffusers(found)
    except (ConfigError, TypeError, ValueError, IndexError) as err:
        raise _corrupt(weights, UNET, err) from err


def described_vae(weights: Described) -> VAEConfig | None:
    """The VAE's config in a header, if there is one. Errors: `CorruptFile` for an invalid one."""
    found = _read(weights, VAE)
    try:
        return None if found is None else vae_config_from_diffusers(found)
    except (ConfigError, TypeError, ValueError, IndexError) as err:
        raise _corrupt(weights, VAE, err) from err


def described_text(weights: Described) -> Mapping[str, Any]:
    """transformers' configs in a header, by kind of text encoder. Errors: `CorruptFile`."""
    found = _read(weights, TEXT)
    return {} if found is None else found


def _read(weights: Described, field: str) -> dict[str, Any] | None:
    text = weights.metadata.get(field)
    if text is None:
        return None
    try:
        content = json.loads(text) if len(text) <= MAX_CHARACTERS else None
    except (ValueError, RecursionError) as err:
        raise _corrupt(weights, field, err) from err
    if not isinstance(content, dict):
        raise _corrupt(weights, field, "not a JSON object of reasonable length")
    return content


def _corrupt(weights: Described, field: str, problem: object) -> CorruptFile:
    return CorruptFile(weights.path, f"its header's {field} cannot be used ({problem})", "give `config` yourself")
