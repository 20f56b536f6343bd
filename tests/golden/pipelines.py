"""Tiny random Stable Diffusion pipelines, saved by diffusers: every part is real, only small.

Text encoders keep their published widths, which tell the families apart; the tokenizer knows the letters.
"""

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tests.golden.minis import randomize

SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}

UNETS = {
    "sd1": {"cross_attention_dim": 768, "attention_head_dim": 4},
    "sd2": {"cross_attention_dim": 1024, "attention_head_dim": (2, 4), "use_linear_projection": True},
    "sdxl": {
        "cross_attention_dim": 2048,
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 2),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 1280 + 6 * 8,
    },
}

UNETS |= {
    "inpaint": UNETS["sd1"] | {"in_channels": 9},
    "pix2pix": UNETS["sd1"] | {"in_channels": 8},
    "depth": UNETS["sd1"] | {"in_channels": 5},
    "refiner": UNETS["sdxl"]
    | {"cross_attention_dim": 1280, "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2560},
}

PIPELINES = {
    "inpaint": StableDiffusionInpaintPipeline,
    "pix2pix": StableDiffusionInstructPix2PixPipeline,
    "refiner": StableDiffusionXLImg2ImgPipeline,
    "sdxl": StableDiffusionXLPipeline,
}

REFINER = {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False}
"""What the model_index.json of SDXL's refiner says of it."""

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def save_pipeline(family: str, folder: Path) -> Path:
    """A pipeline in diffusers' folder layout: a key of `UNETS`; "sd2" predicts v."""
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **UNETS[family],
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 32),
        norm_num_groups=8,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        sample_size=32,
        scaling_factor=0.13025 if family in ("sdxl", "refiner") else 0.18215,
        force_upcast=False,
    )
    prediction = "v_prediction" if family == "sd2" else "epsilon"
    # What training scripts write: it names no sampler.
    scheduler = DDPMScheduler(**SCHEDULE, prediction_type=prediction, clip_sample=False, steps_offset=1)
    tokenizer = letters_tokenizer(folder.with_name(f"{family}-tokenizer"))
    parts = {"unet": unet, "vae": vae, "scheduler": scheduler, "tokenizer": tokenizer}
    kind = PIPELINES.get(family, StableDiffusionPipeline)
    if family in ("sdxl", "refiner"):
        both = family == "sdxl"
        parts |= {
            "text_encoder": text_encoder("clip_l") if both else None,
            "text_encoder_2": text_encoder("openclip_g"),
        }
        parts["tokenizer"] = tokenizer if both else None
        aesthetics = {} if both else REFINER
        pipeline = kind(**parts, tokenizer_2=tokenizer, add_watermarker=False, **aesthetics)
    else:
        parts["text_encoder"] = text_encoder("openclip_h" if family == "sd2" else "clip_l")
        pipeline = kind(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    texts = [part for name, part in parts.items() if name.startswith("text_encoder") and part is not None]
    for seed, network in enumerate((unet, vae, *texts)):
        randomize(network, seed)
    with torch.no_grad():  # pictures in the middle of the range, where a difference shows
        vae.decoder.conv_out.weight *= 0.3
        # diffusers draws from the posterior where undertow takes its mean: a narrow one lets them be compared.
        vae.quant_conv.weight[4:] = 0
        vae.quant_conv.bias[4:] = -30
    pipeline.save_pretrained(folder)
    return folder


def text_encoder(kind: str):
    width, activation = {"clip_l": (768, "quick_gelu"), "openclip_h": (1024, "gelu"), "openclip_g": (1280, "gelu")}[
        kind
    ]
    config = CLIPTextConfig(
        vocab_size=2 * len(LETTERS) + 2,
        hidden_size=width,
        intermediate_size=64,
        projection_dim=width,
        num_hidden_layers=3,
        num_attention_heads=width // 64,
        hidden_act=activation,
        bos_token_id=2 * len(LETTERS),
        eos_token_id=2 * len(LETTERS) + 1,
        pad_token_id=2 * len(LETTERS) + 1,
    )
    return (CLIPTextModelWithProjection if kind == "openclip_g" else CLIPTextModel)(config)


def letters_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer whose tokens are single letters, inside a word and at its end."""
    folder.mkdir(parents=True)
    tokens = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77, pad_token="<|endoftext|>"
    )
