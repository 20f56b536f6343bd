"""Names of every dialect on miniature U-Nets, against diffusers where it is right, else against a merge in float64.

Cases L1 to L4 of the parity plan.
"""

import pytest
import torch
from torch import Tensor

from tests.adapters.lora.comparing import (
    assert_close,
    assert_weights,
    base_output,
    deltas,
    diffusers_output,
    ours,
    output,
    targets_of,
    unet_of,
    uniform,
)
from tests.adapters.lora.files import (
    MINIS,
    SITES,
    is_attention,
    is_transformer,
    kohya,
    layers_of,
    ldm_names,
    low_rank,
    merged,
    write,
)
from tests.few import few
from undertow.adapters.lora.lora_file import read_lora


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize(
    ("name", "sites"),
    few([("M15", "convolutions"), ("MXL", "transformer"), ("M21", "attention"), ("MRF", "all")], 2),
)
def test_kohya_names_with_one_alpha(name, sites, tmp_path):
    """L1."""
    layers = layers_of(unet_of(name), SITES[sites])
    path = write(tmp_path / "lora.safetensors", kohya(layers))
    found = ours(name, read_lora(path, targets_of(name)))
    expected = output(name, merged(unet_of(name), uniform(layers)))
    assert_close(found, expected, base_output(name))
    if not any("add_embedding" in layer for layer in layers):  # which diffusers misnames
        assert_close(found, diffusers_output(name, path), base_output(name))


@pytest.mark.parametrize("name", MINIS)
def test_kohya_names_spelled_as_in_ldm(name, tmp_path):
    """L2. diffusers fails on convolutions of four levels ("input_blocks_1" and "input_blocks_10")."""
    named = ldm_names(MINIS[name], layers_of(unet_of(name)))
    layers = layers_of(unet_of(name))
    path = write(tmp_path / "lora.safetensors", kohya({ldm: layers[layer] for ldm, layer in named.items()}))
    lora = read_lora(path, targets_of(name))
    assert_weights(name, lora, uniform(layers, {layer: ldm for ldm, layer in named.items()}))
    assert lora.report.dialects == {"kohya (LDM names)": len(layers)}


def test_ldm_names_of_sdxl_as_diffusers_reads_them(tmp_path):
    """L2, where diffusers can: SDXL's transformers."""
    layers = layers_of(unet_of("MXL"), is_transformer)
    named = ldm_names(MINIS["MXL"], layers)
    path = write(tmp_path / "lora.safetensors", kohya({ldm: layers[layer] for ldm, layer in named.items()}))
    found = ours("MXL", read_lora(path, targets_of("MXL")))
    assert_close(found, diffusers_output("MXL", path), base_output("MXL"))


def test_each_layer_has_its_own_alpha_and_rank(tmp_path):
    """L3: what diffusers gets wrong. No alpha, and an alpha of 0, mean the rank."""
    layers = layers_of(unet_of("M15"))
    alphas = dict(zip(layers, [None, 0.0, 1.0, 2.5, 16.0] * len(layers), strict=False))
    ranks = dict(zip(layers, [1, 3, 4, 8] * len(layers), strict=False))
    tensors: dict[str, Tensor] = {}
    for layer, shape in layers.items():
        tensors |= kohya({layer: shape}, rank=ranks[layer], alpha=alphas[layer])
    lora = read_lora(write(tmp_path / "lora.safetensors", tensors), targets_of("M15"))
    scales = {layer: alphas[layer] / ranks[layer] if alphas[layer] else 1.0 for layer in layers}
    assert_weights("M15", lora, deltas(layers, {n: n for n in layers}, scales, ranks))
    assert lora.report.ranks == (1, 8)
    assert lora.report.alphas == (0.0, 16.0)
    assert any("have no alpha" in note for note in lora.report.notes)


def old_processor(layer: str) -> str:
    attention, projection = layer.removesuffix(".0").rsplit(".", 1)
    return f"{attention}.processor.{projection}_lora"


DOTTED = {
    "diffusers old": ("unet.{old}", ".down.weight", ".up.weight", True),
    "diffusers old, bare": ("{old}", ".down.weight", ".up.weight", False),
    "diffusers mid": ("unet.{name}", ".lora.down.weight", ".lora.up.weight", True),
    "PEFT in diffusers": ("unet.{name}", ".lora_A.weight", ".lora_B.weight", True),
    "PEFT, bare": ("{name}", ".lora_A.weight", ".lora_B.weight", False),
    "PEFT, named adapter": ("base_model.model.{name}", ".lora_A.default.weight", ".lora_B.default.weight", False),
    "PEFT folder's names": ("base_model.model.{name}", ".lora_A.weight", ".lora_B.weight", False),
    "PEFT around a U-Net": ("unet.base_model.model.{name}", ".lora_A.weight", ".lora_B.weight", False),
    "LyCORIS' wrapper": ("lycoris_{flat}", ".lora_down.weight", ".lora_up.weight", False),
    "ComfyUI": ("diffusion_model.{ldm}", ".lora_down.weight", ".lora_up.weight", False),
    "ComfyUI with PEFT": ("diffusion_model.{ldm}", ".lora_A.weight", ".lora_B.weight", False),
    "dotted LDM": ("model.diffusion_model.{ldm}", ".lora_down.weight", ".lora_up.weight", False),
}


@pytest.mark.parametrize("dialect", DOTTED)
def test_other_dialects(dialect, tmp_path):
    """L4."""
    pattern, down_ending, up_ending, diffusers_reads = DOTTED[dialect]
    layers = layers_of(unet_of("M15"), lambda name: is_attention(name) and "up_blocks.1" in name)
    ldm = {layer: foreign for foreign, layer in ldm_names(MINIS["M15"], layers).items()}
    tensors = {}
    for layer, shape in layers.items():
        down, up = low_rank(layer, shape, 4)
        stem = pattern.format(name=layer, old=old_processor(layer), flat=layer.replace(".", "_"), ldm=ldm[layer])
        tensors |= {f"{stem}{down_ending}": down, f"{stem}{up_ending}": up}
    path = write(tmp_path / "lora.safetensors", tensors)
    lora = read_lora(path, targets_of("M15"))
    assert_weights("M15", lora, uniform(layers, scale=1.0))
    if diffusers_reads:
        assert_close(ours("M15", lora), diffusers_output("M15", path), base_output("M15"))
