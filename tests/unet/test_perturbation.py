"""From the perturbations that rows ask for to what each self-attention receives."""

import math

import pytest
import torch

from tests.golden.minis import M15, MXL
from undertow.diffusion.guidance import Perturbation
from undertow.errors import InvalidInput
from undertow.unet.config import Level, UNetConfig
from undertow.unet.perturbation import perturbed_rows
from undertow.unet.self_attentions import self_attentions_in

MIDDLE = "mid_block.attentions.0.transformer_blocks.0.attn1"


def test_every_row_has_its_own_perturbation_of_the_layers_that_it_names():
    identity = Perturbation(kind="identity", layers=("mid_block", "up_blocks.1"))
    blurred = Perturbation(kind="blurred", sigma=2.5)
    endless = Perturbation(kind="blurred", sigma=math.inf, layers=("up_blocks.1.attentions.0",))
    made = perturbed_rows(M15.config, [None, identity, blurred, endless])
    up = [f"up_blocks.1.attentions.{i}.transformer_blocks.0.attn1" for i in range(3)]
    assert list(made) == [MIDDLE, *up], "in the order of execution"
    assert made[MIDDLE].identity.tolist() == [False, True, False, False]
    assert made[MIDDLE].blur.tolist() == [0, 0, 2.5, 0]
    assert made[up[0]].identity.tolist() == [False, True, False, False]
    assert made[up[0]].blur.tolist() == [0, 0, 0, math.inf]
    assert made[up[1]].identity.tolist() == [False, True, False, False]
    assert made[up[1]].blur is None, "nobody blurs there, so no blur is in the graph"
    assert perturbed_rows(M15.config, [blurred])[MIDDLE].identity is None


def test_layers_are_in_one_order_whoever_comes_first():
    first, second = (Perturbation(kind="identity", layers=(layer,)) for layer in ("up_blocks.1", "down_blocks.1"))
    one, other = (list(perturbed_rows(M15.config, rows)) for rows in ([first, second], [second, first]))
    assert one == other == [site for site in M15.config.self_attentions() if site in one]


def test_rows_without_any_perturbation_have_none():
    assert perturbed_rows(M15.config, [None, None]) is None


def test_perturbations_are_made_where_they_are_wanted():
    kinds = [Perturbation(kind="identity"), Perturbation(kind="blurred", sigma=1.0)]
    made = perturbed_rows(M15.config, kinds, "meta")
    assert {made[MIDDLE].identity.device.type, made[MIDDLE].blur.device.type} == {"meta"}
    assert made[MIDDLE].identity.dtype == torch.bool


def test_a_layer_is_a_module_and_not_the_beginning_of_a_name():
    """up_blocks.1 is no part of up_blocks.10, nor attn1 of attn10."""
    levels = tuple(Level(channels=32, resnets=1, attention=M15.config.levels[0].attention) for _ in range(12))
    config = UNetConfig(levels=levels, context_dim=8)
    inside = self_attentions_in(config, ("up_blocks.1",))
    assert {site.split(".")[1] for site in inside} == {"1"}
    assert len(inside) == 2
    assert self_attentions_in(config, (inside[0],)) == [inside[0]]


def test_layers_named_twice_and_their_parts_are_in_the_order_asked_for():
    layers = ("up_blocks.0.attentions.1", "mid_block")
    found = self_attentions_in(MXL.config, layers)
    assert found == [
        *(f"up_blocks.0.attentions.1.transformer_blocks.{i}.attn1" for i in range(3)),
        *(f"mid_block.attentions.0.transformer_blocks.{i}.attn1" for i in range(3)),
    ]


def test_a_layer_without_self_attention_is_refused_with_those_that_have_some():
    for layer in ("mid", "up_blocks.0", "attn1", ""):
        with pytest.raises(InvalidInput) as caught:
            self_attentions_in(M15.config, ("mid_block", layer))
        assert f"layers is {layer!r}" in str(caught.value)
        blocks = "down_blocks.0, down_blocks.1, down_blocks.2, mid_block, up_blocks.1, up_blocks.2, up_blocks.3"
        assert caught.value.expected == f"a part of {blocks}, with self-attention"


def test_a_network_without_any_says_so():
    with pytest.raises(InvalidInput, match="nothing: this network has no self-attention"):
        self_attentions_in(UNetConfig(levels=(Level(channels=32),)), ("mid_block",))
