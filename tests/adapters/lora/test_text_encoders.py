"""Adapters of text encoders: case L9 of the parity plan."""

import pytest
import torch
from torch import Tensor

from tests.adapters.lora.comparing import T1
from tests.adapters.lora.files import kohya, low_rank, write
from tests.encoders.minis import shared_encoder
from tests.golden.minis import M15, MXL, build
from undertow.adapters.lora.lora_file import read_lora
from undertow.adapters.lora.targets import Targets

TEXT_PREFIXES = {
    ("clip_l",): {"clip_l": "lora_te_"},
    ("openclip_h",): {"openclip_h": "lora_te_"},
    ("clip_l", "openclip_g"): {"clip_l": "lora_te1_", "openclip_g": "lora_te2_"},
    ("openclip_g",): {"openclip_g": "lora_te2_"},
}


@pytest.mark.parametrize("kinds", TEXT_PREFIXES)
def test_text_encoders(kinds, tmp_path):
    """L9, kohya: every linear layer, and the projection where there is one."""
    encoders = [shared_encoder(kind) for kind in kinds]
    targets = Targets.of(build(M15), encoders)
    tensors: dict[str, Tensor] = {}
    for kind in kinds:
        layers = {name: target.shape for name, target in targets.layers[kind].items() if len(target.shape) == 2}
        assert ("text_projection" in layers) == (kind == "openclip_g")
        tensors |= kohya(layers, prefix=TEXT_PREFIXES[kinds][kind])
    lora = read_lora(write(tmp_path / "lora.safetensors", tensors), targets)
    assert lora.updates.keys() == set(kinds)
    for encoder in encoders:
        named = encoder.tensors()
        for name, update in lora.updates[encoder.kind].items():
            down, up = low_rank(name, tuple(named[f"{name}.weight"].shape), 4)
            expected = named[f"{name}.weight"].double() + 0.5 * up.double() @ down.double()
            assert float((update.weight(named[f"{name}.weight"], 1.0) - expected).abs().max()) < T1
        assert len(lora.updates[encoder.kind]) == 6 * 3 + (encoder.kind == "openclip_g")


TEXT_SPELLINGS = {
    "diffusers": ("text_encoder_2.{name}", ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    "diffusers old": ("text_encoder_2.{old}", ".down.weight", ".up.weight"),
    "PEFT in diffusers": ("text_encoder_2.{name}", ".lora_A.weight", ".lora_B.weight"),
    "transformers 5.6": ("text_encoder_2.{bare}", ".lora_A.weight", ".lora_B.weight"),
    "PEFT": ("base_model.model.{name}", ".lora_A.weight", ".lora_B.weight"),
    "ComfyUI": ("text_encoders.clip_g.transformer.{name}", ".lora_down.weight", ".lora_up.weight"),
}


@pytest.mark.parametrize("spelling", TEXT_SPELLINGS)
def test_spellings_of_text_encoders(spelling, tmp_path):
    """L9: the second encoder of SDXL; without a prefix, the shapes tell which encoder is meant."""
    pattern, down_ending, up_ending = TEXT_SPELLINGS[spelling]
    targets = Targets.of(build(MXL), [shared_encoder("clip_l"), shared_encoder("openclip_g")])
    layers = {name: target.shape for name, target in targets.layers["openclip_g"].items() if "self_attn" in name}
    old = {"q_proj": "to_q_lora", "k_proj": "to_k_lora", "v_proj": "to_v_lora", "out_proj": "to_out_lora"}
    tensors = {}
    for name, shape in layers.items():
        down, up = low_rank(name, shape, 4)
        attention, projection = name.rsplit(".", 1)
        stem = pattern.format(name=name, bare=name.removeprefix("text_model."), old=f"{attention}.{old[projection]}")
        tensors |= {f"{stem}{down_ending}": down, f"{stem}{up_ending}": up}
    lora = read_lora(write(tmp_path / "lora.safetensors", tensors), targets)
    assert lora.updates.keys() == {"openclip_g"}
    for name, update in lora.updates["openclip_g"].items():
        down, up = low_rank(name, layers[name], 4)
        assert torch.equal(update.down, down)
        assert torch.equal(update.up, up)
    assert lora.updates["openclip_g"].keys() == layers.keys()
