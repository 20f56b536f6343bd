"""Which decoder layers FreeU acts on, with which factors (arXiv:2309.11497), and what it refuses."""

import math
from typing import cast

import pytest
import torch

from tests.golden.minis import M15, MINIS, MXL, pair
from undertow.errors import InvalidInput
from undertow.nn.resnet import ResBlock
from undertow.unet.config import CrossAttention, Level, Middle, UNetConfig
from undertow.unet.free_u import FreeU
from undertow.unet.free_u_factors import free_u_factors

SETTING = FreeU(b1=1.1, b2=1.2, s1=0.8, s2=0.6)


def table(config: UNetConfig, *settings: FreeU | None) -> dict[str, list[tuple[float, float, bool]]]:
    """By layer, (b, s, version 2) of each row."""
    made = free_u_factors(config, settings)
    assert made is not None
    rows = {
        name: zip(f.backbone.tolist(), f.skip.tolist(), f.structural.tolist(), strict=True) for name, f in made.items()
    }
    return {name: [(round(b, 4), round(s, 4), v) for b, s, v in values] for name, values in rows.items()}


def backbones(name: str) -> dict[str, int]:
    """Every decoder layer with the channels that reach it from below: its input without its skip."""
    config, unet = MINIS[name].config, pair(name)[0]
    skips = [shape[0] for shape in config.skip_shapes(8, 8)]
    layers = [n for n in config.layer_names() if n.startswith("up_blocks.") and ".resnets." in n]
    return {
        layer: cast(ResBlock, unet.get_submodule(layer)).norm1.num_channels - skip
        for layer, skip in zip(layers, reversed(skips), strict=True)
    }


@pytest.mark.parametrize("name", ["M15", "MXL", "MPIX"])
def test_keyed_by_channels_it_acts_where_the_backbone_is_four_and_two_times_the_first_level(name):
    """The authors' rule: 1280 and 640 of Stable Diffusion, whose first level has 320."""
    first = MINIS[name].config.levels[0].channels
    factors = {4 * first: (1.1, 0.8, False), 2 * first: (1.2, 0.6, False)}
    expected = {layer: [factors[width]] for layer, width in backbones(name).items() if width in factors}
    found = table(MINIS[name].config, SETTING)
    assert found == expected
    assert list(found) == list(expected), "in the order of execution"
    assert {row for (row,) in found.values()} == set(factors.values())


def test_the_layers_of_stable_diffusion_1_are_those_of_the_authors():
    made = table(UNetConfig.sd15(), SETTING)
    stages = {part: [n for n, ((b, _, _),) in made.items() if b == part] for part in (1.1, 1.2)}
    assert stages == {
        1.1: [*(f"up_blocks.{stage}.resnets.{i}" for stage in (0, 1) for i in range(3)), "up_blocks.2.resnets.0"],
        1.2: ["up_blocks.2.resnets.1", "up_blocks.2.resnets.2", "up_blocks.3.resnets.0"],
    }


@pytest.mark.parametrize("name", ["M15", "MXL"])
def test_keyed_by_index_it_acts_in_the_first_two_stages(name):
    setting = FreeU(b1=1.1, b2=1.2, s1=0.8, s2=0.6, keyed="index", version=2)
    assert table(MINIS[name].config, setting) == {
        f"up_blocks.{stage}.resnets.{i}": [row]
        for stage, row in enumerate([(1.1, 0.8, True), (1.2, 0.6, True)])
        for i in range(3)
    }


def test_rows_without_a_setting_have_factors_of_one():
    made = table(M15.config, None, SETTING, FreeU(b1=1.3, b2=1.4, s1=0.5, s2=0.4, keyed="index", version=2))
    assert made["up_blocks.0.resnets.0"] == [(1, 1, False), (1.1, 0.8, False), (1.3, 0.5, True)]
    assert made["up_blocks.3.resnets.0"] == [(1, 1, False), (1.2, 0.6, False), (1, 1, False)]
    assert free_u_factors(M15.config, [None, None]) is None


def test_factors_are_made_where_they_are_wanted():
    factors = free_u_factors(MXL.config, [SETTING], "meta")
    assert {getattr(f, field).device.type for f in factors.values() for field in vars(f)} == {"meta"}


def test_the_usual_settings_are_the_authors_for_stable_diffusion_1_5():
    assert FreeU() == FreeU(b1=1.5, b2=1.6, s1=0.9, s2=0.2, keyed="channels", version=1)


def test_a_network_without_such_layers_is_refused_with_another_way():
    config = UNetConfig(
        levels=(Level(channels=32), Level(channels=96, attention=CrossAttention(heads=4))),
        middle=Middle(attention=CrossAttention(heads=4)),
        context_dim=8,
    )
    with pytest.raises(InvalidInput, match=r"keyed by channels.*key it by index"):
        free_u_factors(config, [None, SETTING])
    assert len(free_u_factors(config, [FreeU(keyed="index")])) == 6


@pytest.mark.parametrize("name", ["b1", "b2", "s1", "s2"])
def test_factors_are_finite_and_not_negative(name):
    for value in (-0.01, math.nan, math.inf):
        with pytest.raises(InvalidInput, match=f"FreeU's {name} is "):
            FreeU(**{name: value})
    assert getattr(FreeU(**{name: 0.0}), name) == 0


@pytest.mark.parametrize("field", ["keyed", "version"])
def test_words_that_name_nothing_are_refused(field):
    setting = FreeU()
    object.__setattr__(setting, field, "other")  # past the tests' own type checks
    with pytest.raises(InvalidInput, match=f"FreeU's {field} is 'other'"):
        setting.__post_init__()


def test_factors_are_float32_per_row():
    factors = free_u_factors(M15.config, [SETTING, None])
    assert {f.backbone.dtype for f in factors.values()} == {torch.float32}
    assert {tuple(f.structural.shape) for f in factors.values()} == {(2,)}
