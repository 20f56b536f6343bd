"""Tiny adapters that act beside the weights, as files for one U-Net, with random weights everywhere."""

from pathlib import Path

import numpy as np
import torch
from diffusers import T2IAdapter
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from tests.golden.controls import ldm_name
from tests.golden.minis import randomize
from undertow.adapters.control.control_file import write_control
from undertow.adapters.control.controlnet import ControlNet
from undertow.adapters.image_prompt.image_prompt_file import write_image_prompt
from undertow.adapters.image_prompt.projection import Variant
from undertow.adapters.image_prompt.prompt import ImagePrompt
from undertow.unet.unet import UNet

FEATURES = 24
"""Width of the encoder's pooled vector and of its hidden states."""


def control_file(folder: Path, unet: UNet, *, seed: int, cell: int = 2, loudness: float = 1.0) -> Path:
    """A ControlNet in diffusers' layout. cell: pixels of its hints for a cell of the latents. loudness: of its zero
    convolutions, which are not zero."""
    network = ControlNet.from_unet(unet, (8, 16, 24, 32)[: cell.bit_length()])
    randomize(network, seed)
    with torch.no_grad():
        for layer in (*network.controlnet_down_blocks, network.controlnet_mid_block):
            layer.weight *= loudness
    return write_control(network, folder, dtype=torch.float32)


def control_lora_file(path: Path, unet: UNet, *, seed: int) -> Path:
    """A Control-LoRA of a hint embedder and zero convolutions; everything else in it is the U-Net's."""
    network = ControlNet.from_unet(unet, (8, 16))
    randomize(network, seed)
    own = {name: one for name, one in network.state_dict().items() if name.startswith("controlnet_")}
    names = {
        ldm_name(name, network.config.unet, network.config.hint_channels): one.clone() for name, one in own.items()
    }
    save_file({"lora_controlnet": torch.zeros(0), **names}, path)
    return path


def t2i_folder(folder: Path, unet: UNet, *, seed: int, cell: int = 2) -> Path:
    """A full T2I-Adapter as diffusers saves it."""
    channels = [level.channels for level in unet.config.levels]
    network = T2IAdapter(channels=channels, num_res_blocks=1, downscale_factor=cell, adapter_type="full_adapter")
    randomize(network, seed)
    network.save_pretrained(folder)
    return folder


def prompt_file(path: Path, unet: UNet, *, seed: int, variant: Variant = "base") -> Path:
    """An IP-Adapter in the authors' flat form, with an image encoder beside it."""
    prompt = ImagePrompt.new(unet, FEATURES, variant=variant)
    randomize(prompt, seed)
    write_image_prompt(prompt, path, dtype=torch.float32)
    if not (path.parent / "image_encoder").is_dir():
        encoder_folder(path.parent / "image_encoder", seed=seed + 1)
    return path


def encoder_folder(folder: Path, *, seed: int, features: int = FEATURES) -> Path:
    """A CLIP vision network as transformers saves it."""
    config = CLIPVisionConfig(
        hidden_size=features,
        intermediate_size=32,
        projection_dim=features,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    network = CLIPVisionModelWithProjection(config)
    randomize(network, seed)
    network.save_pretrained(folder)
    return folder


def picture(seed: int, width: int = 32, height: int = 32) -> Image.Image:
    """Noise with a bright box in it."""
    pixels = np.random.default_rng(seed).integers(0, 200, (height, width, 3), dtype=np.uint8)
    pixels[height // 4 : height // 2, width // 4 : 3 * width // 4] = 255
    return Image.fromarray(pixels)


def half(side: str, width: int = 32, height: int = 32) -> Image.Image:
    """A mask, white on one side."""
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (0, 0, width // 2, height) if side == "left" else (width // 2, 0, width, height))
    return mask
