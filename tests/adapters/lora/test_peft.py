"""Files and folders of PEFT and diffusers, whose strength is not in tensors: cases L5 to L7 of the parity plan."""

import json

import pytest
import torch
from torch import Tensor, nn

from tests.adapters.lora.comparing import (
    assert_close,
    base_output,
    deltas,
    diffusers_output,
    ours,
    output,
    targets_of,
    unet_of,
    uniform,
)
from tests.adapters.lora.files import MINIS, is_attention, kohya, layers_of, low_rank, merged, write
from tests.few import few
from tests.golden.minis import TIMESTEPS, build_twin, conditioning_for, latents_for, run_twin
from undertow.adapters.lora.lora_file import read_lora


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def peft_tensors(layers: dict[str, tuple[int, ...]], prefix: str = "unet.") -> dict[str, Tensor]:
    tensors = {}
    for layer, shape in layers.items():
        down, up = low_rank(layer, shape, 4)
        tensors |= {f"{prefix}{layer}.lora_A.weight": down, f"{prefix}{layer}.lora_B.weight": up}
    return tensors


def test_strength_from_diffusers_header(tmp_path):
    """L5: alpha, patterns and rank stabilization in the header, as diffusers writes and reads them."""
    layers = layers_of(unet_of("M15"), is_attention)
    halved = next(iter(layers))
    config = {
        "unet.lora_alpha": 2,
        "unet.r": 4,
        "unet.use_rslora": True,
        "unet.alpha_pattern": {halved: 1, r"mid_block.*to_q": 8},
        "unet.rank_pattern": {},
        "unet.target_modules": list(layers),
    }
    header = {"lora_adapter_metadata": json.dumps(config), "format": "pt"}
    path = write(tmp_path / "lora.safetensors", peft_tensors(layers), header)
    lora = read_lora(path, targets_of("M15"))
    found = ours("M15", lora)
    alphas = {layer: 1 if layer == halved else 8 if "mid_block" in layer and "to_q" in layer else 2 for layer in layers}
    scales = {layer: alpha / 2 for layer, alpha in alphas.items()}
    expected = deltas(layers, {n: n for n in layers}, scales, dict.fromkeys(layers, 4))
    assert_close(found, output("M15", merged(unet_of("M15"), expected)), base_output("M15"))
    assert_close(found, diffusers_output("M15", path), base_output("M15"))
    assert lora.report.alphas == (1, 8)


@pytest.mark.parametrize("key", ["lora_alpha", "network_alpha"])
def test_strength_from_a_plain_header_field(key, tmp_path):
    layers = layers_of(unet_of("M15"), is_attention)
    path = write(tmp_path / "lora.safetensors", peft_tensors(layers), {key: "2"})
    expected = output("M15", merged(unet_of("M15"), uniform(layers)))
    assert_close(ours("M15", read_lora(path, targets_of("M15"))), expected, base_output("M15"))


@pytest.mark.parametrize(
    ("header", "scale"),
    [
        ({"unet.lora_alpha": "3", "unet.r": "4"}, 3 / 4),
        ({"unet.lora_alpha": "3", "unet.r": "4", "unet.use_rslora": "True"}, 3 / 2),
        ({"lora_alpha": "3", "use_rslora": "true"}, 3 / 2),
        ({"unet.lora_alpha": "3", "unet.alpha_pattern": '{"to_[qkv]": 2, "to_out.0": 2}'}, 2 / 4),
        ({"text_encoder.lora_alpha": "3"}, 1.0),
    ],
)
def test_strength_from_a_config_whose_fields_are_header_fields(header, scale, tmp_path):
    """alpha / r, or alpha / sqrt(r) with rank stabilization, as PEFT computes it (`tuners/lora/layer.py`)."""
    layers = layers_of(unet_of("M15"), is_attention)
    path = write(tmp_path / "lora.safetensors", peft_tensors(layers), header)
    expected = output("M15", merged(unet_of("M15"), uniform(layers, scale=scale)))
    assert_close(ours("M15", read_lora(path, targets_of("M15"))), expected, base_output("M15"))


def test_kohya_s_information_in_the_header_is_not_a_strength(tmp_path):
    layers = layers_of(unet_of("M15"), is_attention)
    header = {"ss_network_alpha": "2", "network_alpha": "2"}
    path = write(tmp_path / "lora.safetensors", kohya(layers, alpha=None), header)
    expected = output("M15", merged(unet_of("M15"), uniform(layers, scale=1.0)))
    assert_close(ours("M15", read_lora(path, targets_of("M15"))), expected, base_output("M15"))


PEFT_CONFIGS = {
    "plain": {"r": 4, "lora_alpha": 2},
    "rank-stabilized": {"r": 4, "lora_alpha": 3, "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 2,
        "rank_pattern": {"mid_block.*to_q": 2, "attn2.to_v": 6},
        "alpha_pattern": {"attn2.to_v": 9, "to_k": 1},
    },
    "DoRA": {"r": 4, "lora_alpha": 4, "use_dora": True},
    "bias": {"r": 4, "lora_alpha": 2, "lora_bias": True},
}


# PEFT takes the biases it trained for matrices that were lost.
@pytest.mark.filterwarnings("ignore:Adapter 'default'. [0-9]+ LoRA tensor")
@pytest.mark.parametrize("case", few(PEFT_CONFIGS, 2))
def test_folders_of_peft(case, tmp_path):
    """L5 and L7: PEFT trains, saves and runs; we read the folder. Linear layers, 1x1 and 3x3 convolutions."""
    from peft import LoraConfig, get_peft_model

    twin = build_twin(MINIS["M15"], unet_of("M15"))
    # PEFT warns where a bias would be new.
    sites = ["to_out.0", "proj_in", "conv1"] + ([] if case == "bias" else ["to_q", "to_k", "to_v"])
    model = get_peft_model(twin, LoraConfig(target_modules=sites, **PEFT_CONFIGS[case]))
    randomize_adapter(model)
    model.save_pretrained(str(tmp_path / "adapter"))
    expected = run_twin(model.eval(), latents_for(MINIS["M15"]), TIMESTEPS, conditioning_for(MINIS["M15"]))
    lora = read_lora(tmp_path / "adapter", targets_of("M15"))
    assert_close(ours("M15", lora), expected, base_output("M15"))
    assert lora.report.kinds.keys() == ({"dora"} if case == "DoRA" else {"lora", "locon"})
    by_file = read_lora(tmp_path / "adapter" / "adapter_model.safetensors", targets_of("M15"))
    assert by_file.content_hash == lora.content_hash


@pytest.mark.parametrize("case", few(["LoHa of whole kernels", "LoKr of both", "LoHa", "LoKr", "LoKr of none"], 2))
def test_lycoris_kinds_of_peft(case, tmp_path):
    """L6: PEFT's LoHa and LoKr, whose alpha is in the config; its LoKr divides by the rank in any case."""
    from peft import LoHaConfig, LoKrConfig, get_peft_model

    sites = ["to_q", "to_k", "conv1"]
    config = {
        "LoHa": LoHaConfig(r=4, alpha=2, target_modules=sites, use_effective_conv2d=True),
        "LoHa of whole kernels": LoHaConfig(r=4, alpha=2, target_modules=sites),
        "LoKr": LoKrConfig(r=4, alpha=2, target_modules=sites, use_effective_conv2d=True),
        "LoKr of both": LoKrConfig(r=2, alpha=1, target_modules=sites, decompose_both=True),
        "LoKr of none": LoKrConfig(r=64, alpha=16, target_modules=sites),
    }[case]
    twin = build_twin(MINIS["M15"], unet_of("M15"))
    model = get_peft_model(twin, config)
    randomize_adapter(model)
    model.save_pretrained(str(tmp_path))
    expected = run_twin(model.eval(), latents_for(MINIS["M15"]), TIMESTEPS, conditioning_for(MINIS["M15"]))
    lora = read_lora(tmp_path, targets_of("M15"))
    assert_close(ours("M15", lora), expected, base_output("M15"))
    assert lora.report.kinds.keys() == {case[:4].lower()}


def randomize_adapter(model: nn.Module) -> None:
    """Values for everything that PEFT trains; its magnitudes are moved, not replaced."""
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.mul_(1 + 0.4 * torch.rand_like(parameter))
        elif "lora_B" in name and name.endswith("bias"):
            parameter.copy_(0.2 * torch.randn_like(parameter))
        elif any(part in name for part in ("lora_A", "hada_", "lokr_")):
            parameter.copy_(torch.randn_like(parameter) * max(2, parameter[0].numel()) ** -0.5)
        elif "lora_B" in name:
            parameter.copy_(0.3 * torch.randn_like(parameter))
