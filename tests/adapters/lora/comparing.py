"""Comparing adapters on miniature U-Nets: ours, diffusers', and merges written out."""

from functools import cache
from pathlib import Path

import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
from torch import Tensor, nn

from tests.adapters.lora.files import MINIS, applied, low_rank
from tests.golden.minis import TIMESTEPS, build_twin, conditioning_for, latents_for, pair, run_twin
from undertow.adapters.lora.lora_file import Lora
from undertow.adapters.lora.targets import Targets
from undertow.unet.unet import UNet

T1 = 2e-5
"""Largest difference in float32, relative to the largest reference value (at least 1): merged weights and side paths
are the same sums in another order."""

EFFECT = 0.1
"""The least that an adapter must change, or a comparison shows nothing."""


def unet_of(name: str) -> UNet:
    return pair(name)[0]


@cache
def targets_of(name: str) -> Targets:
    return Targets.of(unet_of(name))


def output(name: str, unet: nn.Module) -> Tensor:
    mini = MINIS[name]
    return unet(latents_for(mini), TIMESTEPS, conditioning_for(mini))


@cache
def base_output(name: str) -> Tensor:
    with torch.no_grad():
        return output(name, unet_of(name))


def diffusers_output(name: str, path: Path) -> Tensor:
    """diffusers' U-Net with the file loaded by diffusers."""
    mini, xl = MINIS[name], MINIS[name].config.linear_projection and MINIS[name].config.added is not None
    twin = build_twin(mini, unet_of(name))
    mixin = StableDiffusionXLLoraLoaderMixin if xl else StableDiffusionLoraLoaderMixin
    read = mixin.lora_state_dict(str(path), unet_config=twin.config, return_lora_metadata=True)
    state, alphas, metadata = (*read, None)[:3]
    mixin.load_lora_into_unet(state, network_alphas=alphas, unet=twin, metadata=metadata)
    return run_twin(twin, latents_for(mini), TIMESTEPS, conditioning_for(mini))


def assert_close(found: Tensor, expected: Tensor, base: Tensor) -> None:
    assert float((expected - base).norm() / base.norm()) > EFFECT
    assert float((found - expected).abs().max()) <= T1 * max(1.0, float(expected.abs().max()))


def ours(name: str, lora: Lora) -> Tensor:
    assert lora.updates.keys() == {"unet"}
    assert not lora.report.unmatched
    return output(name, applied(unet_of(name), lora.updates["unet"]))


def assert_weights(name: str, lora: Lora, expected: dict[str, Tensor]) -> None:
    """Every layer's weight is the base's and the expected change, which is large, summed in float64."""
    assert lora.updates["unet"].keys() == expected.keys()
    assert not lora.report.unmatched
    largest = 0.0
    for layer, delta in expected.items():
        base = unet_of(name).get_submodule(layer).weight
        whole = base.double() + delta.reshape(base.shape)
        found = lora.updates["unet"][layer].weight(base, 1.0)
        assert float((found.double() - whole).abs().max()) <= T1 * max(1.0, float(whole.abs().max())), layer
        largest = max(largest, float(delta.norm() / base.norm()))
    assert largest > EFFECT


def deltas(layers: dict[str, tuple[int, ...]], names: dict[str, str], scales: dict[str, float], ranks: dict[str, int]):
    """What `kohya` and its kin write, as whole matrices. names: the file's names of the layers."""
    found = {}
    for layer, shape in layers.items():
        down, up = low_rank(names[layer], shape, ranks[layer])
        found[layer] = scales[layer] * up.double().flatten(1) @ down.double().flatten(1)
    return found


def uniform(layers: dict[str, tuple[int, ...]], names: dict[str, str] | None = None, scale: float = 0.5):
    return deltas(layers, names or {n: n for n in layers}, dict.fromkeys(layers, scale), dict.fromkeys(layers, 4))
