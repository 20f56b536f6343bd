"""A config is either buildable or refused with the field's name."""

from collections.abc import Iterable
from dataclasses import replace
from typing import cast

import pytest
import torch

from tests.golden.minis import M15, MINIS, pair
from tests.unet.watch import watched
from undertow.errors import ConfigError
from undertow.nn.attention import SpatialSelfAttention
from undertow.nn.transformer import SpatialTransformer
from undertow.unet.config import ClassLabels, CrossAttention, Level, Middle, SelfAttention, TextTime, UNetConfig
from undertow.unet.presets import PRESETS
from undertow.unet.unet import UNet

CROSS = CrossAttention(heads=8)

IMPOSSIBLE = {
    "levels": {"levels": ()},
    "in_channels": {"in_channels": 0},
    "out_channels": {"out_channels": -1},
    "norm_groups": {"norm_groups": 0},
    "sample_size": {"sample_size": 0},
    "context_dim": {"context_dim": 0},
    "time_dim": {"time_dim": 0},
    "max_timestep": {"max_timestep": 0.0},
    "norm_eps": {"norm_eps": 0.0},
    "dropout": {"dropout": 1.0},
    "sinusoid_dim": {"sinusoid_dim": 33},
    "guidance_dim": {"guidance_dim": 17},
    "frequency_shift": {"frequency_shift": 16.0},
    "levels[0].channels": {"levels": (Level(channels=33, attention=CROSS),), "sinusoid_dim": 32},
    "levels[0].resnets": {"levels": (Level(channels=32, resnets=0, attention=CROSS),)},
    "levels[1].attention.heads": {
        "levels": (Level(channels=32), Level(channels=64, attention=CrossAttention(heads=7)))
    },
    "levels[0].attention.depth": {"levels": (Level(channels=32, attention=CrossAttention(heads=8, depth=(1, 0))),)},
    "levels[0].attention.decoder_depth": {
        "levels": (Level(channels=32, attention=CrossAttention(heads=8, depth=1, decoder_depth=(1, 1))),)
    },
    "middle.resnets": {"middle": Middle(resnets=0)},
    "middle.attention.heads": {"middle": Middle(attention=CrossAttention(heads=7))},
    "middle.attention.depth": {"middle": Middle(attention=CrossAttention(heads=8, depth=(1, 2)))},
    "middle.attention.decoder_depth": {"middle": Middle(attention=CrossAttention(heads=8, decoder_depth=2))},
    "added.pooled_dim": {"added": TextTime(pooled_dim=-16)},
    "added.ids": {"added": TextTime(ids=0)},
    "added.sinusoid_dim": {"added": TextTime(sinusoid_dim=3)},
    "added.count": {"added": ClassLabels(count=0)},
}


@pytest.mark.parametrize("field", IMPOSSIBLE)
def test_impossible_values_are_refused_by_field(field):
    with pytest.raises(ConfigError) as caught:
        replace(M15.config, **IMPOSSIBLE[field])
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field} = ")


def text(**changes: object) -> UNetConfig:
    """One level with text, whose numbers are changed."""
    fields = {
        "levels": (Level(channels=8, resnets=1, attention=CrossAttention(heads=2)),),
        "middle": Middle(attention=CrossAttention(heads=2)),
        "context_dim": 6,
        "norm_groups": 4,
    }
    return UNetConfig(**{**fields, **changes})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dropout", -0.1),
        ("norm_eps", -1e-5),
        ("frequency_shift", -0.5),
        ("frequency_shift", 4.0),
        ("sinusoid_dim", 2),
        ("guidance_dim", 2),
        ("max_timestep", 0.5),
    ],
)
def test_values_just_beyond_the_ends_are_refused(field, value):
    with pytest.raises(ConfigError) as caught:
        text(**{field: value})
    assert caught.value.field == field


@pytest.mark.parametrize(
    "changes",
    [
        {"dropout": 0.0},
        {"dropout": 0.99},
        {"frequency_shift": 3.9},
        {"sinusoid_dim": 4},
        {"guidance_dim": 4},
        {"max_timestep": 1.0},
        {"context_dim": 1},
        {"norm_groups": 8},
        {"added": TextTime(pooled_dim=1, ids=1, sinusoid_dim=4)},
        {"added": ClassLabels(count=1)},
        {"levels": (Level(channels=8, attention=CrossAttention(heads=8)),)},
        {"middle": Middle(resnets=1)},
        {"middle": Middle(attention=CrossAttention(heads=8, depth=0))},
        {"middle": Middle(attention=SelfAttention(heads=1), resnets=3)},
        {"sample_size": 1, "in_channels": 1, "out_channels": 1},
    ],
    ids=str,
)
def test_values_at_the_ends_are_built(changes):
    config = text(**changes)
    assert config.validate() is True
    with torch.device("meta"):
        UNet(config)


def test_a_shift_is_less_than_half_of_the_narrowest_sinusoid():
    """Of the timestep's and the sizes', which use it; the guidance's has a shift of its own."""
    for added, sinusoid in ((TextTime(sinusoid_dim=6), 8), (TextTime(sinusoid_dim=10), 6)):
        text(added=added, sinusoid_dim=sinusoid, frequency_shift=2.9, guidance_dim=4)
        with pytest.raises(ConfigError, match="less than 3, half of the narrowest"):
            text(added=added, sinusoid_dim=sinusoid, frequency_shift=3.0)


def test_the_usual_values_are_those_of_stable_diffusion():
    config = text()
    usual = {"in_channels": 4, "out_channels": 4, "linear_projection": False, "added": None, "guidance_dim": None}
    usual |= {"sinusoid_dim": None, "time_dim": None, "norm_eps": 1e-5, "dropout": 0.0, "upcast_attention": False}
    usual |= {"sample_size": 64, "max_timestep": 1000.0, "cos_first": True, "frequency_shift": 0.0}
    assert {name: getattr(config, name) for name in usual} == usual
    assert config == text(**usual)
    assert UNetConfig(levels=(Level(channels=32),)).norm_groups == 32
    assert (Level(channels=8).resnets, Middle().resnets) == (2, 2)
    assert CrossAttention(heads=1) == CrossAttention(heads=1, depth=1, decoder_depth=None)
    assert TextTime() == TextTime(pooled_dim=1280, ids=6, sinusoid_dim=256)
    assert ClassLabels(count=3) == ClassLabels(count=3, null=False)


def test_widths_of_embeddings_are_those_given_or_follow_the_first_level():
    assert (text().timestep_sinusoid_dim, text().embedding_dim) == (8, 32)
    assert (text(sinusoid_dim=12).timestep_sinusoid_dim, text(time_dim=10).embedding_dim) == (12, 10)
    assert (ClassLabels(count=3).rows, ClassLabels(count=3, null=True).rows) == (3, 4)
    assert [TextTime(ids=ids).scored for ids in (4, 5, 6)] == [False, True, False]


@pytest.mark.parametrize(
    ("depth", "decoder", "encoder_depths", "decoder_depths"),
    [
        (2, None, (2, 2), (2, 2, 2)),
        (2, 3, (2, 2), (3, 3, 3)),
        (2, (1, 2, 3), (2, 2), (1, 2, 3)),
        ((1, 4), (1, 2, 3), (1, 4), (1, 2, 3)),
        ((1, 4), 2, (1, 4), (2, 2, 2)),
    ],
)
def test_each_res_block_has_its_depth(depth, decoder, encoder_depths, decoder_depths):
    attention = CrossAttention(heads=2, depth=depth, decoder_depth=decoder)
    level = Level(channels=8, attention=attention)
    assert (level.encoder_depths(), level.decoder_depths()) == (encoder_depths, decoder_depths)
    config = text(levels=(level,))
    with torch.device("meta"):
        unet = UNet(config)
    for stage, depths in ((unet.down_blocks[0], encoder_depths), (unet.up_blocks[0], decoder_depths)):
        layers = cast(Iterable[SpatialTransformer], stage.attentions)
        assert tuple(len(layer.transformer_blocks) for layer in layers) == depths


def test_other_kinds_of_attention_have_no_transformers():
    for attention in (None, SelfAttention(heads=2)):
        level = Level(channels=8, resnets=3, attention=attention)
        assert (level.encoder_depths(), level.decoder_depths()) == ((0,) * 3, (0,) * 4)
        assert Middle(attention=attention, resnets=3).depths() == (0, 0)
    assert Middle(attention=CrossAttention(heads=2, depth=5), resnets=3).depths() == (5, 5)


@pytest.mark.parametrize("depth", [0, (1, 1, 1), (2,), -1])
def test_a_depth_is_a_positive_number_for_each_res_block(depth):
    with pytest.raises(ConfigError, match="each of the 2 ResBlocks"):
        replace(M15.config, levels=(Level(channels=32, attention=CrossAttention(heads=8, depth=depth)),))


def test_depths_of_the_encoder_alone_do_not_say_the_decoders():
    attention = CrossAttention(heads=8, depth=(1, 2))
    with pytest.raises(ConfigError, match="decoder_depth"):
        replace(M15.config, levels=(Level(channels=32, attention=attention),))


def test_text_width_and_cross_attention_come_together():
    for config, context_dim in ((M15.config, None), (UNetConfig.cifar10(), 24)):
        with pytest.raises(ConfigError) as caught:
            replace(config, context_dim=context_dim)
        assert caught.value.field == "context_dim"


def test_the_smallest_configs_are_built():
    """At the edges of the rules."""
    tiny = UNetConfig(
        levels=(Level(channels=4, resnets=1, attention=SelfAttention(heads=4)),),
        middle=Middle(resnets=1),
        in_channels=1,
        out_channels=2,
        norm_groups=1,
        frequency_shift=1.0,
        time_dim=1,
        max_timestep=None,
    )
    assert tiny.validate() is True
    assert UNet(tiny)(torch.ones(1, 1, 1, 1), torch.tensor([5000.0])).shape == (1, 2, 1, 1)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_named_after_their_method(name):
    config = PRESETS[name]()
    assert config.validate() is True
    assert config == getattr(UNetConfig, name.replace("-", "_"))()


@pytest.mark.parametrize(
    ("name", "model_type", "channels", "head_dims", "context", "linear"),
    [
        ("sd15", "sd1", [320, 640, 1280, 1280], [40, 80, 160, None], 768, False),
        ("sd21", "sd2", [320, 640, 1280, 1280], [64, 64, 64, None], 1024, True),
        ("sdxl", "sdxl", [320, 640, 1280], [None, 64, 64], 2048, True),
        ("sdxl-refiner", "sdxl_refiner", [384, 768, 1536, 1536], [None, 64, 64, None], 1280, True),
        ("cifar10", "pixels", [64, 128, 256], [None, None, 64], None, False),
    ],
)
def test_source_document_000_words(name, model_type, channels, head_dims, context, linear):
    """R12; heads and their width are two things (trap T5), and Up1 of SD1 has no attention (trap T1)."""
    config = PRESETS[name]()
    assert config.model_type == model_type
    assert config.block_out_channels == channels
    assert config.attention_head_dim == head_dims
    assert config.cross_attention_dim == context
    assert config.use_linear_projection is linear
    assert config.layers_per_block == 2
    assert config.in_channels == config.out_channels


def test_unequal_numbers_of_res_blocks_are_listed():
    config = UNetConfig(levels=(Level(channels=32, resnets=1), Level(channels=32, resnets=3)))
    assert config.layers_per_block == [1, 3]
    assert M15.config.model_type == "custom"


# Source document 002: "h = conv_in(x); skips = [h]", then what each step of the encoder appends, at 32x32.
CIFAR10_SKIPS = [
    (64, 32, 32),
    (64, 32, 32),
    (64, 32, 32),
    (64, 16, 16),
    (128, 16, 16),
    (128, 16, 16),
    (128, 8, 8),
    (256, 8, 8),
    (256, 8, 8),
]


def test_skips_of_source_document_002():
    """R118, trap T13: nine, not one per level."""
    config = UNetConfig.cifar10()
    assert config.skip_shapes(32, 32) == CIFAR10_SKIPS
    unet = UNet(config)
    # What the decoder's ResBlocks receive: the running channels plus a skip's, in the order of popping.
    blocks = [[unet.get_submodule(f"up_blocks.{stage}.resnets.{i}") for i in range(3)] for stage in range(3)]
    widths = [[block.norm1.num_channels for block in stage] for stage in blocks]
    assert widths == [[256 + 256, 256 + 256, 256 + 128], [256 + 128, 128 + 128, 128 + 64], [128 + 64, 64 + 64, 64 + 64]]


@pytest.mark.parametrize("size", [(8, 8), (17, 13), (9, 9), (1, 1)])
@pytest.mark.parametrize("name", ["M15", "MXL", "MUNC"])
def test_skip_shapes_are_those_of_the_encoder(name, size):
    config = MINIS[name].config
    # A level returns the running activations, and then the skips that it stores.
    stored = [
        shape[1:]
        for ran in watched(name, *size)
        if ran.name.startswith("down_blocks.") and ran.name.count(".") == 1
        for shape in ran.gave[1:]
    ]
    assert config.skip_shapes(*size) == [(config.levels[0].channels, *size), *stored]


def test_layer_names_of_source_document_002():
    names = UNetConfig.cifar10().layer_names()
    assert names[:5] == [
        "time_embedding",
        "class_embedding",
        "conv_in",
        "down_blocks.0.resnets.0",
        "down_blocks.0.resnets.1",
    ]
    encoder_attention = [name for name in names if name.startswith("down_blocks") and "attentions" in name]
    assert encoder_attention == ["down_blocks.2.attentions.0", "down_blocks.2.attentions.1"]
    assert len([name for name in names if name.startswith("up_blocks") and "resnets" in name]) == 9


@pytest.mark.parametrize("name", MINIS)
def test_layer_names_are_the_modules_in_the_order_of_execution(name):
    names = MINIS[name].config.layer_names()
    assert [ran.name for ran in watched(name) if ran.name in names] == names
    parameters = [parameter for parameter, _ in pair(name)[0].named_parameters()]
    assert [one for one in parameters if not any(one.startswith(f"{layer}.") for layer in names)] == []


@pytest.mark.parametrize("name", MINIS)
def test_cross_attentions_are_listed_with_their_widths_in_the_order_of_execution(name):
    sites = MINIS[name].config.cross_attentions()
    ran = {one.name: one.received[-1] for one in watched(name) if one.name.endswith(".attn2")}
    assert list(sites.items()) == list(ran.items())


@pytest.mark.parametrize("name", MINIS)
def test_self_attentions_are_listed_in_the_order_of_execution(name):
    spatial = {n for n, module in pair(name)[0].named_modules() if isinstance(module, SpatialSelfAttention)}
    ran = [one.name for one in watched(name) if one.name.endswith(".attn1") or one.name in spatial]
    assert MINIS[name].config.self_attentions() == ran


@pytest.mark.parametrize(("name", "size"), [("M15", (8, 8)), ("M15", (9, 13)), ("MXL", (17, 13))])
def test_attention_grids_are_the_maps_that_cross_attentions_look_from(name, size):
    grids = MINIS[name].config.attention_grids(*size)
    seen = {one.name: one.received[1] for one in watched(name, *size) if one.name.endswith(".attn2")}
    assert {site: rows * columns for site, (rows, columns) in grids.items()} == seen
    inside = {
        one.name: one.received[2:] for one in watched(name, *size) if one.name.split(".")[-2:-1] == ["attentions"]
    }
    assert {site: inside[site.split(".transformer_blocks")[0]] for site in grids} == grids


def test_the_published_models_have_16_and_70_and_44_cross_attentions():
    assert [len(PRESETS[name]().cross_attentions()) for name in ("sd15", "sdxl", "sdxl-refiner")] == [16, 70, 44]
