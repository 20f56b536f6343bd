"""Weights with scales, as ComfyUI keeps them: the scales are applied while they are loaded, and what is not understood
is refused by name."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from scipy.linalg import block_diag
from torch import Tensor

from tests.checkpoints.crafted import ldm_tensors
from undertow.checkpoints.files.header import HeaderOnly
from undertow.checkpoints.files.model_file import open_model_file
from undertow.checkpoints.files.scaled import without_scales
from undertow.checkpoints.files.weights import open_weights
from undertow.checkpoints.identify.checkpoint import OpenOptions
from undertow.checkpoints.identify.identification import identify
from undertow.checkpoints.read.loading import LoadOptions
from undertow.checkpoints.read.unet_loading import load_unet_from
from undertow.errors import CorruptFile, UnsupportedModel
from undertow.unet.config import CrossAttention, Level, Middle, UNetConfig
from undertow.unet.unet import UNet

SMALL = UNetConfig(
    levels=(Level(channels=16, attention=CrossAttention(heads=2)), Level(channels=32)),
    middle=Middle(attention=CrossAttention(heads=2)),
    context_dim=12,
    norm_groups=4,
)
PREFIX = "model.diffusion_model."
LAYER = f"{PREFIX}input_blocks.1.1.transformer_blocks.0.attn1.to_q"
OURS = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
TURNED = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 16}


@pytest.fixture(scope="module")
def plain() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: tensor + 0.01 * torch.randn(tensor.shape) for name, tensor in ldm_tensors(UNet(SMALL)).items()}


def config_tensor(config: object) -> Tensor:
    return torch.tensor(list(json.dumps(config).encode()), dtype=torch.uint8)


def hadamard_16() -> Tensor:
    """Written out from the definition, not by the code that is tested."""
    four = torch.tensor([[1.0, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]]) / 2
    return torch.cat([torch.cat([four[i, j] * four for j in range(4)], 1) for i in range(4)])


def scaled(plain: dict[str, Tensor], spelling: str) -> tuple[dict[str, Tensor], dict[str, str], Tensor]:
    """The tensors and the metadata with one layer quantized, and the numbers that it then has."""
    weight = plain[f"{LAYER}.weight"]
    rest = {name: tensor for name, tensor in plain.items() if name != f"{LAYER}.weight"}
    if spelling.startswith("fp8"):
        scale = weight.abs().max() / 448
        stored = (weight / scale).to(torch.float8_e4m3fn)
        numbers = stored.float() * scale
        if spelling == "fp8 of old":
            extra = {
                f"{LAYER}.scale_weight": scale,
                f"{LAYER}.scale_input": torch.ones(()),
                f"{PREFIX}scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn),
            }
            return {**rest, f"{LAYER}.weight": stored, **extra}, {}, numbers
        layers = {"layers": {LAYER: {"format": "float8_e4m3fn"}}}
        return (
            {**rest, f"{LAYER}.weight": stored, f"{LAYER}.weight_scale": scale},
            {"_quantization_metadata": json.dumps(layers)},
            numbers,
        )
    turned = (
        weight @ torch.from_numpy(block_diag(*[hadamard_16()] * (weight.shape[1] // 16))).float()
        if "turned" in spelling
        else weight
    )
    scale = turned.abs().amax(1, keepdim=True) / 127
    stored = (turned / scale).round().to(torch.int8)
    config = TURNED if "turned" in spelling else {"format": "int8_tensorwise"}
    extra = {f"{LAYER}.weight_scale": scale, f"{LAYER}.comfy_quant": config_tensor(config)}
    return {**rest, f"{LAYER}.weight": stored, **extra}, {}, weight if "turned" in spelling else stored.float() * scale


PACKED = {
    "fp8 of old": "fp8 e4m3 with scales",
    "fp8 in the header": "fp8 e4m3 with scales",
    "int8 by rows": "int8 with scales",
    "int8 turned": "int8 with scales, rotated by 16",
}


@pytest.mark.parametrize("spelling", PACKED)
def test_scales_are_applied_while_weights_are_loaded(plain, spelling, tmp_path):
    tensors, metadata, numbers = scaled(plain, spelling)
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata=metadata)
    unet = load_unet_from(path, LoadOptions(dtype=torch.float32), OpenOptions(config=SMALL))
    exact = plain[f"{LAYER}.weight"]
    tolerance = 0.02 * exact.abs().max() if "turned" in spelling else 0
    assert (unet.state_dict()[OURS] - numbers).abs().max() <= tolerance
    assert 0 < (unet.state_dict()[OURS] - exact).abs().max() < 0.05 * exact.abs().max()
    weights = open_model_file(path)
    assert weights.tensors.keys() == plain.keys()
    packed = weights.tensors[f"{LAYER}.weight"].packed
    assert packed is not None
    assert packed.name == PACKED[spelling]
    header = open_weights(path)
    seen = without_scales(HeaderOnly(path=path, tensors=header.tensors, metadata=header.metadata))
    assert seen.tensors.keys() == plain.keys()
    assert "_quantization_metadata" not in seen.metadata


BAD: dict[str, tuple[object, type[Exception], str]] = {
    "four bits": ({"format": "nvfp4"}, UnsupportedModel, "ComfyUI quantized as 'nvfp4'"),
    "another type": ({"format": "float8_e5m2"}, CorruptFile, "is float8_e5m2 by its description, and I8"),
    "no power of four": (
        {**TURNED, "convrot_groupsize": 8},
        CorruptFile,
        "rotated by 8; powers of 4 that divide its 16",
    ),
    "too wide": ({**TURNED, "convrot_groupsize": 64}, CorruptFile, "rotated by 64"),
    "no number": ({**TURNED, "convrot_groupsize": "x"}, CorruptFile, "rotated by x"),
    "a list": ([1], CorruptFile, "a JSON list, not an object"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_understood_is_refused(plain, name, tmp_path):
    config, error, message = BAD[name]
    tensors, _, _ = scaled(plain, "int8 turned")
    save_file({**tensors, f"{LAYER}.comfy_quant": config_tensor(config)}, tmp_path / "model.safetensors")
    with pytest.raises(error, match=message):
        identify(tmp_path / "model.safetensors")


def test_scales_of_blocks_are_refused(plain, tmp_path):
    tensors, _, _ = scaled(plain, "int8 by rows")
    save_file({**tensors, f"{LAYER}.weight_scale": torch.ones(2, 3)}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModel, match="quantized weights with scales"):
        identify(tmp_path / "model.safetensors")


@pytest.mark.parametrize("sign", ["names", "header"])
def test_nunchakus_files_are_refused_by_name(plain, sign, tmp_path):
    path: Path = tmp_path / "svdq.safetensors"
    extra = {f"{LAYER}.qweight": torch.zeros(2, dtype=torch.int8), f"{LAYER}.wscales": torch.ones(2)}
    said = {"quantization_config": json.dumps({"method": "svdquant"})}
    save_file({**plain, **extra} if sign == "names" else plain, path, metadata=said if sign == "header" else {})
    with pytest.raises(UnsupportedModel, match=r"Nunchaku's 4-bit weights .* use the float16 model"):
        identify(path)
