"""The presets against the `config.json` of the published models, as their authors wrote them."""

import pytest

from undertow.unet.config import ClassLabels, Level, Middle, SelfAttention, UNetConfig
from undertow.unet.diffusers_config import config_from_diffusers
from undertow.unet.presets import PRESETS

SD15 = {
    "in_channels": 4,
    "out_channels": 4,
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
}
"""stable-diffusion-v1-5"""

SD21 = {**SD15, "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True}
"""stable-diffusion-2-1-base"""

SDXL = {
    **SD15,
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
"""stable-diffusion-xl-base-1.0"""

REFINER = {
    **SDXL,
    "block_out_channels": [384, 768, 1536, 1536],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": [6, 12, 24, 24],
    "transformer_layers_per_block": 4,
    "cross_attention_dim": 1280,
    "projection_class_embeddings_input_dim": 2560,
}
"""stable-diffusion-xl-refiner-1.0"""

PUBLISHED = {
    "sd15": SD15,
    "sd15-inpaint": {**SD15, "in_channels": 9},
    "instruct-pix2pix": {**SD15, "in_channels": 8},
    "lcm-sd15": {**SD15, "time_cond_proj_dim": 256},
    "sd21": SD21,
    "sd2-inpaint": {**SD21, "in_channels": 9},
    "sdxl": SDXL,
    "sdxl-inpaint": {**SDXL, "in_channels": 9},
    "sdxl-refiner": REFINER,
    "lcm-sdxl": {**SDXL, "time_cond_proj_dim": 256},
    "ssd-1b": {
        **SDXL,
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [1, 2, 4],
        "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
    },
    "vega": {**SDXL, "mid_block_type": "UNetMidBlock2D", "transformer_layers_per_block": [1, 1, 2]},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_is_the_published_architecture(name):
    assert PRESETS[name]() == config_from_diffusers(PUBLISHED[name])


def test_stable_diffusion_2_for_768_pixels_attends_in_float32():
    published = {**SD21, "sample_size": 96, "upcast_attention": True}
    assert UNetConfig.sd21(v_prediction=True) == config_from_diffusers(published)


@pytest.mark.parametrize("attention_at_16", [False, True])
@pytest.mark.parametrize("class_labels", [False, True])
def test_the_pixel_model_is_that_of_source_document_002(class_labels, attention_at_16):
    """Base 64, multipliers 1, 2 and 4, heads of 64 channels, sinusoids of 256 with sines first."""
    made = UNetConfig.cifar10(class_labels=class_labels, attention_at_16=attention_at_16)
    assert made == UNetConfig(
        levels=(
            Level(channels=64, resnets=2),
            Level(channels=128, resnets=2, attention=SelfAttention(heads=2) if attention_at_16 else None),
            Level(channels=256, resnets=2, attention=SelfAttention(heads=4)),
        ),
        middle=Middle(attention=SelfAttention(heads=4), resnets=2),
        in_channels=3,
        out_channels=3,
        context_dim=None,
        added=ClassLabels(count=10, null=False) if class_labels else None,
        sinusoid_dim=256,
        time_dim=None,
        cos_first=False,
        frequency_shift=0.0,
        norm_groups=32,
        norm_eps=1e-5,
        dropout=0.0,
        sample_size=32,
        max_timestep=1000.0,
    )
    assert made.embedding_dim == made.timestep_sinusoid_dim == 256


def test_every_preset_is_compared():
    assert PRESETS.keys() == PUBLISHED.keys() | {"cifar10"}
    assert UNetConfig.cifar10() == UNetConfig.cifar10(class_labels=True, attention_at_16=False)
