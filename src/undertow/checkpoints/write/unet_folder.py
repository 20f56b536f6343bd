"""Writes a U-Net as a diffusers model folder: `config.json` and `diffusion_pytorch_model.safetensors`."""

import json
from pathlib import Path

import torch

from undertow.checkpoints.files.atomic import write_text
from undertow.checkpoints.files.model_folder import CONFIG, WEIGHTS
from undertow.checkpoints.files.weights import write_tensors
from undertow.nn.quantized import plain_weights
from undertow.unet.diffusers_config import config_to_diffusers
from undertow.unet.unet import UNet


def save_unet(unet: UNet, folder: str | Path, *, dtype: torch.dtype | None = None) -> Path:
    """Writes `unet` so that diffusers' `from_pretrained` and `load_unet_folder` read it, and returns the folder.

    Each file is written atomically, so that a crash or a full disk leaves the old one intact.
    Errors: `ConfigError` for an architecture that diffusers' config cannot express.
    """
    folder = Path(folder)
    config = json.dumps(config_to_diffusers(unet.config), indent=2) + "\n"
    tensors = {
        name: tensor.detach().to(device="cpu", dtype=dtype).contiguous() for name, tensor in plain_weights(unet).items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    write_text(config, folder / CONFIG)
    return folder
