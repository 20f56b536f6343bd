"""Configs, parameter names and shapes against diffusers' classes and the published checkpoints (N1)."""

import hashlib

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import nn

from tests.golden.minis import MINIS
from undertow.errors import ConfigError
from undertow.unet.config import (
    ClassLabels,
    CrossAttention,
    Level,
    Middle,
    SelfAttention,
    TextTime,
    UNetConfig,
)
from undertow.unet.diffusers_config import ONLY_SUPPORTED, config_from_diffusers, config_to_diffusers
from undertow.unet.unet import UNet

PUBLISHED = {
    "sd15": (UNetConfig.sd15(), 859_520_964, 686, "5159ace1d6e60acb"),
    "sd15_inpaint": (UNetConfig.sd15_inpaint(), 859_535_364, 686, "2e8168210f851c66"),
    "instruct_pix2pix": (UNetConfig.instruct_pix2pix(), 859_532_484, 686, "040efc034c01c63e"),
    "sd21_base": (UNetConfig.sd21(), 865_910_724, 686, "61d626becb5b11d8"),
    "sd21_v": (UNetConfig.sd21(v_prediction=True), 865_910_724, 686, "61d626becb5b11d8"),
    "sd2_inpaint": (UNetConfig.sd2_inpaint(), 865_925_124, 686, "a2ec110ee2fffb7d"),
    "sdxl": (UNetConfig.sdxl(), 2_567_463_684, 1680, "9556a38d644b6b53"),
    # Turbo's shapes are those of the base model.
    "sdxl_turbo": (UNetConfig.sdxl(), 2_567_463_684, 1680, "9556a38d644b6b53"),
    "sdxl_inpaint": (UNetConfig.sdxl_inpaint(), 2_567_478_084, 1680, "59b2a006ad56262a"),
    "sdxl_refiner": (UNetConfig.sdxl_refiner(), 2_259_526_660, 1220, "33876647fb4e4a93"),
    "lcm_sdxl": (UNetConfig.lcm_sdxl(), 2_567_545_604, 1681, "058317755a9cc686"),
    "lcm_sd15": (UNetConfig.lcm_sd15(), 859_602_884, 687, "19228fa51769262e"),
}
"""Parameters, tensors and hash of names and shapes of the published checkpoints."""

DISTILLED = {"ssd_1b": UNetConfig.ssd_1b(), "vega": UNetConfig.vega()}
PIXELS = {
    "cifar10": UNetConfig.cifar10(),
    "cifar10_at_16": UNetConfig.cifar10(attention_at_16=True),
    "cifar10_unconditional": UNetConfig.cifar10(class_labels=False),
}
PRESETS = {name: entry[0] for name, entry in PUBLISHED.items()} | DISTILLED | PIXELS

OWN_FIELDS = ("_class_name", "null_class_label", "timestep_sinusoid_dim", "time_ids")


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _ours(config: UNetConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return _shapes(UNet(config))


def _theirs(config: UNetConfig) -> dict[str, tuple[int, ...]]:
    json = config_to_diffusers(config)
    kind = {"UNet2DConditionModel": UNet2DConditionModel, "UNet2DModel": UNet2DModel}[json["_class_name"]]
    with torch.device("meta"):
        return _shapes(kind(**{name: value for name, value in json.items() if name not in OWN_FIELDS}))


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_names_and_shapes(name):
    """N1."""
    config, parameters, tensors, digest = PUBLISHED[name]
    shapes = _ours(config)
    listing = "\n".join(f"{key} {shapes[key]}" for key in sorted(shapes))
    assert len(shapes) == tensors
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == parameters
    assert hashlib.sha256(listing.encode()).hexdigest()[:16] == digest


@pytest.mark.parametrize("name", ["sd15", "sd21_v", "sdxl_refiner", "lcm_sdxl", *DISTILLED, *PIXELS])
def test_presets_have_the_names_and_shapes_of_diffusers_classes(name):
    """The pixel model of source document 002 has a wider sinusoid than diffusers' class can express."""
    ours, theirs = _ours(PRESETS[name]), _theirs(PRESETS[name])
    if name in PIXELS:
        assert ours.pop("time_embedding.linear_1.weight") == (256, 256)
        assert theirs.pop("time_embedding.linear_1.weight") == (256, 64)
    assert ours == theirs


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_a_round_trip(name):
    assert config_from_diffusers(config_to_diffusers(PRESETS[name])) == PRESETS[name]


@pytest.mark.parametrize("name", MINIS)
def test_minis_survive_a_round_trip(name):
    config = MINIS[name].config
    assert config_from_diffusers(config_to_diffusers(config)) == config


@pytest.mark.parametrize("name", MINIS)
def test_a_config_that_diffusers_wrote_is_read(name):
    """diffusers writes every field of its class, with its defaults."""
    mini = MINIS[name]
    kind = UNet2DModel if mini.config.context_dim is None else UNet2DConditionModel
    with torch.device("meta"):
        written = dict(kind(**mini.diffusers).config)
    written["_class_name"] = kind.__name__
    read = config_from_diffusers({**written, **mini.own})
    assert read == mini.config


@pytest.mark.parametrize("name", MINIS)
def test_missing_fields_mean_diffusers_defaults(name):
    mini = MINIS[name]
    kind = "UNet2DModel" if mini.config.context_dim is None else "UNet2DConditionModel"
    assert config_from_diffusers({"_class_name": kind, **mini.diffusers, **mini.own}) == mini.config


@pytest.mark.parametrize(
    ("pooled", "ids", "dim"), [(1280, 6, 256), (1280, 5, 256), (1024, 6, 256), (16, 5, 32), (1536, 4, 256)]
)
def test_numbers_of_size_ids_survive_a_round_trip(pooled, ids, dim):
    """1024 + 6 x 256 is 2560 too, the refiner's 1280 + 5 x 256: the file must tell them apart."""
    mini = MINIS["MXL"].config
    added = TextTime(pooled_dim=pooled, ids=ids, sinusoid_dim=dim)
    config = UNetConfig(levels=mini.levels, middle=mini.middle, context_dim=24, linear_projection=True, added=added)
    assert config_from_diffusers(config_to_diffusers(config)) == config


REFUSED_VALUES = {
    "act_fn": "gelu",
    "center_input_sample": True,
    "resnet_time_scale_shift": "scale_shift",
    "resnet_skip_time_act": True,
    "resnet_out_scale_factor": 2.0,
    "resnet_pre_norm": False,
    "downsample_padding": 0,
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "mid_block_scale_factor": 0.5,
    "only_cross_attention": [True, False],
    "mid_block_only_cross_attention": True,
    "dual_cross_attention": True,
    "cross_attention_norm": "layer_norm",
    "attention_type": "gated",
    "encoder_hid_dim": 64,
    "encoder_hid_dim_type": "text_proj",
    "class_embed_type": "projection",
    "class_embeddings_concat": True,
    "addition_embed_type": "image",
    "attn_norm_num_groups": 8,
    "time_embedding_type": "fourier",
    "time_embedding_act_fn": "silu",
    "timestep_post_act": "silu",
    "conv_in_kernel": 5,
    "conv_out_kernel": 5,
}


def test_every_restricted_field_is_tried():
    assert REFUSED_VALUES.keys() == ONLY_SUPPORTED.keys()


@pytest.mark.parametrize("field", REFUSED_VALUES)
def test_unsupported_values_are_refused_by_field(field):
    """Ignoring one of these would build another network from the same file, silently."""
    with pytest.raises(ConfigError, match=field) as caught:
        config_from_diffusers({**MINIS["M15"].diffusers, field: REFUSED_VALUES[field]})
    assert caught.value.field == field
    assert caught.value.value == REFUSED_VALUES[field]


M15, MPIX = dict(MINIS["M15"].diffusers), {"_class_name": "UNet2DModel", **MINIS["MPIX"].diffusers}


@pytest.mark.parametrize(
    ("json", "field"),
    [
        ({**M15, "_class_name": "AutoencoderKL"}, "_class_name"),
        ({**M15, "down_block_types": ["AttnDownBlock2D"] * 4}, "down_block_types"),
        ({**M15, "up_block_types": ["UpBlock2D"] * 4}, "up_block_types"),
        ({**M15, "mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "mid_block_type"),
        ({**M15, "cross_attention_dim": [24, 24, 24, 24]}, "cross_attention_dim"),
        ({**M15, "cross_attention_dim": None}, "cross_attention_dim"),
        ({**M15, "block_out_channels": None}, "block_out_channels"),
        ({**M15, "block_out_channels": 32}, "block_out_channels"),
        ({**M15, "attention_head_dim": [8, 8]}, "attention_head_dim"),
        ({**M15, "attention_head_dim": "8"}, "attention_head_dim"),
        ({**M15, "layers_per_block": [2, 2]}, "layers_per_block"),
        ({**M15, "layers_per_block": 2.5}, "layers_per_block"),
        ({**M15, "transformer_layers_per_block": None}, "transformer_layers_per_block"),
        ({**M15, "addition_embed_type": "text_time"}, "addition_time_embed_dim"),
        ({**M15, "norm_num_groups": None}, "norm_num_groups"),
        ({**M15, "norm_eps": "small"}, "norm_eps"),
        ({**M15, "freq_shift": None}, "freq_shift"),
        ({**M15, "sample_size": [64, 96]}, "sample_size"),
        ({**M15, "in_channels": "four"}, "in_channels"),
        ({**M15, "reverse_transformer_layers_per_block": [1, 2]}, "reverse_transformer_layers_per_block"),
        ({**MPIX, "attention_head_dim": 7}, "attention_head_dim"),
        ({**MPIX, "attention_head_dim": "8"}, "attention_head_dim"),
        ({**MPIX, "attention_head_dim": 0}, "attention_head_dim"),
        ({**MPIX, "mid_block_type": None}, "mid_block_type"),
        ({**MPIX, "num_class_embeds": "ten"}, "num_class_embeds"),
        ({**M15, "attention_head_dim": [8, 8, "8", 8]}, "attention_head_dim"),
        ({**M15, "attention_head_dim": [8, 8, None, 8]}, "attention_head_dim"),
        ({**M15, "block_out_channels": [32, "64", 128, 128]}, "block_out_channels"),
        ({**M15, "transformer_layers_per_block": [1, 1, [1, "1"], 1]}, "transformer_layers_per_block"),
    ],
)
def test_impossible_fields_are_refused_by_name(json, field):
    with pytest.raises(ConfigError, match=field) as caught:
        config_from_diffusers(json)
    assert caught.value.field == field


def _text(**changes: object) -> UNetConfig:
    fields = {
        "levels": (Level(channels=32, attention=CrossAttention(heads=4)), Level(channels=64)),
        "middle": Middle(attention=CrossAttention(heads=4)),
        "context_dim": 24,
    }
    return UNetConfig(**{**fields, **changes})


@pytest.mark.parametrize(
    "config",
    [
        _text(levels=(Level(channels=32, attention=SelfAttention(heads=4)), Level(channels=64))),
        _text(middle=Middle(attention=CrossAttention(heads=4), resnets=3)),
        _text(levels=(Level(channels=32), Level(channels=64, attention=CrossAttention(heads=8)))),
        UNetConfig(levels=(Level(channels=32, attention=SelfAttention(heads=1)), Level(channels=64)),
                   middle=Middle(attention=SelfAttention(heads=1))),
        UNetConfig(levels=(Level(channels=32),), middle=Middle(resnets=1)),
    ],
)  # fmt: skip
def test_what_diffusers_cannot_express_is_refused_on_writing(config):
    with pytest.raises(ConfigError, match="diffusers"):
        config_to_diffusers(config)


def test_heads_mean_heads_in_one_class_and_widths_in_the_other():
    """Trap T5: the same field of the same name."""
    text = config_from_diffusers({**M15, "attention_head_dim": 4})
    pixels = config_from_diffusers({**MPIX, "attention_head_dim": 4})
    assert text.levels[1].attention.heads == 4
    assert pixels.levels[1].attention.heads == 64 // 4
    assert config_from_diffusers({**MPIX, "attention_head_dim": None}).levels[1].attention.heads == 1


def test_a_null_class_is_one_row_of_the_table():
    config = config_from_diffusers({**MPIX, "null_class_label": 10})
    assert config.added == ClassLabels(count=10, null=True)
    assert config_from_diffusers(MPIX).added == ClassLabels(count=11)
