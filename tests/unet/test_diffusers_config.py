"""What is written into a diffusers `config.json`, field by field; tests/golden/test_unet_config.py reads it back."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from tests.golden.minis import MINIS, pair
from undertow.unet.config import ClassLabels, Level, Middle, SelfAttention, TextTime, UNetConfig
from undertow.unet.diffusers_config import config_from_diffusers, config_to_diffusers
from undertow.unet.presets import PRESETS

OWN = {"null_class_label", "time_ids", "max_timestep", "timestep_sinusoid_dim"}
"""Fields that diffusers does not know."""


def plain(value: object, levels: int) -> object:
    """Lists for tuples, and one number for every level where a field may hold either."""
    if isinstance(value, Mapping | str) or value is None:
        return value
    listed = (
        [list(v) if isinstance(v, tuple | list) else v for v in value] if isinstance(value, tuple | list) else value
    )
    return [listed] * levels if isinstance(listed, int) and not isinstance(listed, bool) else listed


@pytest.mark.parametrize("name", MINIS)
def test_every_field_that_is_written_is_that_of_diffusers_own_network(name):
    config, twin = MINIS[name].config, pair(name)[1].config
    written = config_to_diffusers(config)
    assert written.pop("_class_name") == type(pair(name)[1]).__name__
    assert written.pop("sample_size") == 64, "diffusers' minis were told of no size"
    theirs = {field: plain(twin[field], len(config.levels)) for field in written if field not in OWN}
    ours = {field: plain(value, len(config.levels)) for field, value in written.items() if field not in OWN}
    unused = [i for i, level in enumerate(config.levels) if level.attention is None]
    for field in ("attention_head_dim", "transformer_layers_per_block"):
        for fields in (ours, theirs):
            if isinstance(fields.get(field), list):  # what diffusers ignores, for levels without attention
                fields[field] = [None if i in unused else value for i, value in enumerate(fields[field])]
    assert ours == theirs


def test_our_own_fields_are_written_only_where_they_say_what_the_others_do_not():
    """diffusers warns of every field that it does not know."""
    for name, preset in PRESETS.items():
        assert config_to_diffusers(preset()).keys() & OWN == ({"timestep_sinusoid_dim"} if name == "cifar10" else set())
    text = MINIS["MXL"].config
    for changes, own in (
        ({"max_timestep": None}, {"max_timestep": None}),
        ({"max_timestep": 500.0}, {"max_timestep": 500.0}),
        ({"sinusoid_dim": 64}, {"timestep_sinusoid_dim": 64}),
        ({"sinusoid_dim": 32}, {}),
        ({"added": TextTime(pooled_dim=16, ids=5, sinusoid_dim=32)}, {"time_ids": 5}),
        ({"added": TextTime(pooled_dim=16, ids=6, sinusoid_dim=32)}, {}),
    ):
        written = config_to_diffusers(replace(text, **changes))
        assert {field: written[field] for field in OWN & written.keys()} == own
    labels = config_to_diffusers(replace(MINIS["MPIX"].config, added=ClassLabels(count=4, null=True)))
    assert (labels["num_class_embeds"], labels["null_class_label"]) == (5, 4)


@pytest.mark.parametrize(
    "changes",
    [
        {"frequency_shift": 0.5},
        {"frequency_shift": 1.0},
        {"cos_first": False},
        {"dropout": 0.1},
        {"norm_eps": 1e-6},
        {"sample_size": 96},
        {"max_timestep": None},
        {"max_timestep": 500.0},
        {"time_dim": 20},
        {"sinusoid_dim": 64},
        {"norm_groups": 8},
        {"in_channels": 5, "out_channels": 7},
        {"added": ClassLabels(count=4)},
        {"added": ClassLabels(count=4, null=True)},
        {"guidance_dim": 16},
        {"upcast_attention": True},
        {"linear_projection": True},
        {"middle": Middle(resnets=1)},
    ],
    ids=str,
)
def test_every_field_survives_a_round_trip(changes):
    config = replace(MINIS["M15"].config, **changes)
    assert config_from_diffusers(config_to_diffusers(config)) == config


def test_heads_of_one_channel_are_read_and_written():
    config = UNetConfig(
        levels=(Level(channels=32, attention=SelfAttention(heads=32)),),
        middle=Middle(attention=SelfAttention(heads=32)),
    )
    written = config_to_diffusers(config)
    assert written["attention_head_dim"] == 1
    assert config_from_diffusers(written) == config


def test_pixels_without_any_attention_are_read_and_written():
    config = UNetConfig(levels=(Level(channels=32), Level(channels=64, resnets=2)), frequency_shift=0.5)
    written = config_to_diffusers(config)
    assert (written["add_attention"], written["freq_shift"], written["layers_per_block"]) == (False, 0.5, 2)
    assert isinstance(config_to_diffusers(replace(config, frequency_shift=1.0))["freq_shift"], int)
    assert config_from_diffusers(written) == config
