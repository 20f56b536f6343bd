"""Miniature pipelines as diffusers and transformers save them: random weights, every part, no network needed."""

import json
from functools import cache
from pathlib import Path

from diffusers import AutoencoderKL, DDPMScheduler
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.golden.minis import MINIS as ALL_MINIS
from tests.golden.minis import Mini, pair, randomize

NAMES = {"sd1": "M15", "sd2": "M21", "sdxl": "MXL", "sdxl_refiner": "MRF"}
MINIS: dict[str, Mini] = {family: ALL_MINIS[name] for family, name in NAMES.items()}

CLASSES = {
    "sd1": "StableDiffusionPipeline",
    "sd2": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sdxl_refiner": "StableDiffusionXLImg2ImgPipeline",
}
TEXT_LAYERS = 3


@cache
def vae(scale: float) -> AutoencoderKL:
    network = AutoencoderKL(
        block_out_channels=[32, 64],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        layers_per_block=2,
        scaling_factor=scale,
        force_upcast=False,
    )
    randomize(network, seed=3)
    return network.eval()


@cache
def text_encoder(width: int, activation: str, projected: bool) -> nn.Module:
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    network = kind(
        CLIPTextConfig(
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=TEXT_LAYERS,
            num_attention_heads=2,
            hidden_act=activation,
            projection_dim=16,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
        )
    )
    randomize(network, seed=width)
    return network.eval()


def text_encoders(family: str) -> dict[str, nn.Module]:
    """By folder name."""
    match family:
        case "sd1":
            return {"text_encoder": text_encoder(24, "quick_gelu", False)}
        case "sd2":
            return {"text_encoder": text_encoder(24, "gelu", False)}
        case "sdxl":
            return {
                "text_encoder": text_encoder(8, "quick_gelu", False),
                "text_encoder_2": text_encoder(16, "gelu", True),
            }
        case _:
            return {"text_encoder_2": text_encoder(24, "gelu", True)}


def save_pipeline(folder: Path, family: str, **scheduler: object) -> Path:
    """A pipeline folder without tokenizers, for which the official vocabulary stands in."""
    pair(NAMES[family])[1].save_pretrained(folder / "unet")
    vae(0.13025 if family.startswith("sdxl") else 0.18215).save_pretrained(folder / "vae")
    index: dict[str, object] = {
        "_class_name": CLASSES[family],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDPMScheduler"],
    }
    for name, network in text_encoders(family).items():
        network.save_pretrained(folder / name)
        index[name] = ["transformers", type(network).__name__]
    settings = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
    DDPMScheduler(**{**settings, **scheduler}).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(index))
    # diffusers does not know the refiner's five numbers from a miniature's width.
    if family == "sdxl_refiner":
        config = json.loads((folder / "unet" / "config.json").read_text())
        (folder / "unet" / "config.json").write_text(json.dumps({**config, "time_ids": 5}))
    return folder
