"""The table of names, at full size: every layer has its own name in every dialect, and each finds it again."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undertow.adapters.lora.names import flatten
from undertow.adapters.lora.targets import Targets, targets_of_config
from undertow.checkpoints.keymap import BlockLayout, unet_renaming
from undertow.unet.presets import PRESETS

FULL = ["sd15", "sd21", "sdxl", "sdxl-refiner"]
LAYERS = {"sd15": 391, "sd21": 391, "sdxl": 1050, "sdxl-refiner": 742}
"""Linear layers, convolutions and norms of the published U-Nets, counted in diffusers' classes."""


@cache
def targets(name: str) -> Targets:
    return targets_of_config(PRESETS[name]())


@pytest.mark.parametrize("name", FULL)
def test_no_two_layers_share_a_name(name):
    """Diffusers' and LDM's names, dotted and flattened: each is entered for one layer only."""
    offered = targets(name)
    renaming = unet_renaming(BlockLayout.of_config(PRESETS[name]()))
    owners: dict[str, set[str]] = {}
    for layer in offered.layers["unet"]:
        for spelling in (layer, renaming.to_foreign(layer)):
            for written in {spelling, flatten(spelling)}:
                owners.setdefault(written, set()).add(layer)
    assert not {written: layers for written, layers in owners.items() if len(layers) > 1}
    assert len(offered.layers["unet"]) == LAYERS[name]
    for written, layers in owners.items():
        assert {offered.find("unet", f"lora_unet_{written}")} == {("unet", layer) for layer in layers}


@cache
def names(name: str) -> list[str]:
    return list(targets(name).layers["unet"])


UNET_FORMS = ["lora_unet_{flat}", "lycoris_{flat}", "unet.{name}", "{name}", "base_model.model.{name}",
              "unet.base_model.model.{name}", "diffusion_model.{ldm}", "model.diffusion_model.{ldm}",
              "lora_unet_{ldm_flat}", "diffusion_model.{name}"]  # fmt: skip


@given(st.sampled_from(FULL), st.sampled_from(UNET_FORMS), st.data())
@settings(max_examples=100)
def test_every_spelling_finds_its_layer(name, form, data):
    offered = targets(name)
    layer = data.draw(st.sampled_from(names(name)))
    ldm = unet_renaming(BlockLayout.of_config(PRESETS[name]())).to_foreign(layer)
    stem = form.format(name=layer, flat=flatten(layer), ldm=ldm, ldm_flat=flatten(ldm))
    assert offered.find(None, stem) == ("unet", layer)
    assert offered.find("unet", stem) == ("unet", layer)
    assert offered.find("clip_l", stem) is None


TEXT_FORMS = {
    ("sd15", "clip_l"): [
        "lora_te_{flat}",
        "lora_te1_{flat}",
        "text_encoder.{name}",
        "{name}",
        "text_encoders.clip_l.transformer.{name}",
    ],
    ("sd21", "openclip_h"): [
        "lora_te_{flat}",
        "lora_te1_{flat}",
        "text_encoder.{name}",
        "text_encoders.clip_h.transformer.{name}",
    ],
    ("sdxl", "clip_l"): [
        "lora_te1_{flat}",
        "lora_te_{flat}",
        "text_encoder.{name}",
        "text_encoders.clip_l.transformer.{name}",
    ],
    ("sdxl", "openclip_g"): ["lora_te2_{flat}", "text_encoder_2.{name}", "text_encoders.clip_g.transformer.{name}"],
    ("sdxl-refiner", "openclip_g"): ["lora_te2_{flat}", "text_encoder_2.{name}", "lora_te_{flat}"],
}


@pytest.mark.parametrize(("name", "network"), TEXT_FORMS)
def test_text_encoders_are_found_by_every_spelling(name, network):
    offered = targets(name)
    for layer in offered.layers[network]:
        for form in TEXT_FORMS[name, network]:
            for module in (layer, layer.removeprefix("text_model.")):
                stem = form.format(name=module, flat=flatten(module))
                assert offered.find(None, stem) == (network, layer), stem


def test_published_text_encoders_have_their_parameters():
    """The counts of `reference` networks: 12, 24 and 32 layers of six matrices and two norms, a norm, a projection."""
    counts = {name: len(targets(name).layers[name_of]) for name, name_of in
              (("sd15", "clip_l"), ("sd21", "openclip_h"), ("sdxl", "openclip_g"))}  # fmt: skip
    assert counts == {"sd15": 12 * 8 + 2, "sd21": 24 * 8 + 2, "sdxl": 32 * 8 + 2}


def test_a_name_without_a_network_may_mean_two_encoders():
    places = targets("sdxl").candidates("base_model.model.text_model.encoder.layers.3.mlp.fc1")
    assert [place.network for place in places] == ["clip_l", "openclip_g"]


@pytest.mark.parametrize(
    "stem",
    [
        "lora_unet_input_blocks_1",
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q_extra",
        "lora_te_text_model_encoder_layers_12_mlp_fc1",
        "lora_te2_text_model_encoder_layers_1_mlp_fc1",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_qq",
        "",
    ],
)
def test_names_that_only_look_alike_find_nothing(stem):
    assert targets("sd15").find(None, stem) is None
