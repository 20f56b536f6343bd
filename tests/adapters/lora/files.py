"""LoRA files of every dialect with random values, and merges written out independently of the package."""

import copy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.golden.minis import M15, M21, MRF, MXL, Mini
from undertow.checkpoints.keymap import BlockLayout, unet_renaming

MINIS: Mapping[str, Mini] = {"M15": M15, "M21": M21, "MXL": MXL, "MRF": MRF}

STRENGTH = 0.6
"""Size of random changes against weights of variance 1 / inputs: small enough to keep the network in its range, large
enough to change every output visibly."""

Shape = tuple[int, ...]


def normal(*shape: int, seed: str) -> Tensor:
    """Random values that depend on the text, so that no two tensors of a file are alike."""
    generator = torch.Generator().manual_seed(int.from_bytes(seed.encode()[-6:], "big") ^ len(seed) ^ hash_of(seed))
    return torch.randn(shape, generator=generator)


def hash_of(text: str) -> int:
    value = 0
    for byte in text.encode():
        value = (value * 131 + byte) % (2**31)
    return value


def low_rank(name: str, shape: Shape, rank: int) -> tuple[Tensor, Tensor]:
    """down and up of a change about `STRENGTH` times as large as a weight of this shape."""
    inputs = int(torch.Size(shape[1:]).numel())
    down = normal(rank, *shape[1:], seed=f"{name}.down") * inputs**-0.5
    up = normal(shape[0], rank, *[1] * (len(shape) - 2), seed=f"{name}.up") * STRENGTH * rank**-0.5
    return down, up


def layers_of(network: nn.Module, wanted: Callable[[str], bool] = lambda _: True) -> dict[str, Shape]:
    """Linear layers and convolutions by name."""
    return {
        name: tuple(module.weight.shape)
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and wanted(name)
    }


def is_attention(name: str) -> bool:
    return ".attn1." in name or ".attn2." in name


def is_transformer(name: str) -> bool:
    return "attentions" in name


def is_convolution(name: str) -> bool:
    return not is_transformer(name)


SITES: Mapping[str, Callable[[str], bool]] = {
    "attention": is_attention,
    "transformer": is_transformer,
    "convolutions": is_convolution,
    "all": lambda _: True,
}


def kohya(names: Mapping[str, Shape], *, prefix: str = "lora_unet_", rank: int = 4, alpha: float | None = 2.0):
    """A kohya file's tensors. names: of the layers as the file shall call them, dotted."""
    tensors: dict[str, Tensor] = {}
    for name, shape in names.items():
        down, up = low_rank(name, shape, rank)
        stem = prefix + name.replace(".", "_")
        tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        if alpha is not None:
            tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    return tensors


def ldm_names(mini: Mini, layers: Iterable[str]) -> dict[str, str]:
    """Our names of layers by LDM's."""
    renaming = unet_renaming(BlockLayout.of_config(mini.config))
    named = {renaming.to_foreign(layer): layer for layer in layers}
    assert None not in named
    return {str(ldm): layer for ldm, layer in named.items()}


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    save_file(
        {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()},
        path,
        metadata=dict(metadata or {}),
    )
    return path


def merged(network: nn.Module, deltas: Mapping[str, Tensor], biases: Mapping[str, Tensor] | None = None) -> nn.Module:
    """A copy of the network with changes added in float64. deltas: by layer, in any shape of as many numbers."""
    changed = copy.deepcopy(network)
    with torch.no_grad():
        for layer, delta in deltas.items():
            weight = changed.get_submodule(layer).weight
            weight.copy_((weight.double() + delta.double().reshape(weight.shape)).float())
        for layer, delta in (biases or {}).items():
            bias = changed.get_submodule(layer).bias
            bias.copy_((bias.double() + delta.double()).float())
    return changed


def applied(network: nn.Module, updates: Mapping[str, object], gain: float = 1.0) -> nn.Module:
    """A copy of the network with our updates in it."""
    changed = copy.deepcopy(network)
    with torch.no_grad():
        for layer, update in updates.items():
            module = changed.get_submodule(layer)
            bias = update.bias(module.bias, gain)
            module.weight.copy_(update.weight(module.weight, gain))
            if bias is not None:
                module.bias = nn.Parameter(bias, requires_grad=False)
    return changed
