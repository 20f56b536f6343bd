"""Control networks with random weights, their diffusers twins, and their tensors under the authors' names."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ControlNetModel
from diffusers import T2IAdapter as DiffusersT2IAdapter
from torch import Tensor, nn

from tests.golden.conftest import largest_difference
from tests.golden.minis import MINIS, TIMESTEPS, build_twin, pair, randomize
from undertow.adapters.control.config import T2IConfig
from undertow.adapters.control.controlnet import ControlNet
from undertow.adapters.control.t2i import T2IAdapter
from undertow.checkpoints.keymap import BlockLayout, unet_renaming
from undertow.unet.conditioning import Conditioning, Residuals
from undertow.unet.config import UNetConfig

HINT_CHANNELS = (8, 16, 24, 32)
LOUD = 150.0


def controlnet(name: str, *, seed: int = 20) -> ControlNet:
    """A ControlNet of a mini with random weights everywhere, its zero convolutions too, and a hint that is loud."""
    network = ControlNet.from_unet(pair(name)[0], HINT_CHANNELS).eval()
    randomize(network, seed)
    with torch.no_grad():
        network.controlnet_cond_embedding.conv_out.weight.mul_(LOUD)
    return network


def twin_of(name: str, network: ControlNet, **fields: Any) -> ControlNetModel:
    """diffusers' own ControlNet of diffusers' own mini, with our weights."""
    twin = ControlNetModel.from_unet(
        build_twin(MINIS[name]), conditioning_embedding_out_channels=HINT_CHANNELS, **fields
    )
    twin.load_state_dict(network.state_dict())
    return twin.eval()


def hint_for(height: int = 16, width: int = 16, *, channels: int = 3, factor: int = 8, seed: int = 3) -> Tensor:
    """Squares of one colour, one for each cell: noise in pixels would hardly be heard behind seven convolutions."""
    cells = torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(seed))
    return cells.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def run_control_twin(
    twin: ControlNetModel, latents: Tensor, given: Conditioning, hint: Tensor, scale: float = 1.0, **extra: bool
) -> Residuals:
    """diffusers' forward as our record."""
    added = {} if given.pooled is None else {"text_embeds": given.pooled, "time_ids": given.time_ids}
    skips, middle = twin(
        latents,
        TIMESTEPS,
        encoder_hidden_states=given.context,
        controlnet_cond=hint,
        conditioning_scale=scale,
        added_cond_kwargs=added,
        return_dict=False,
        **extra,
    )
    return Residuals(skips=tuple(skips), middle=middle)


def largest_of_all(ours: Residuals, reference: Residuals) -> float:
    """The largest difference over all residuals; a mean counts for all cells."""
    pairs = zip((*ours.skips, ours.middle), (*reference.skips, reference.middle), strict=True)
    return max(largest_difference(a, b.expand_as(a)) for a, b in pairs)


def ldm_name(name: str, config: UNetConfig, hint_channels: tuple[int, ...] = HINT_CHANNELS) -> str:
    """lllyasviel's name of one of diffusers' tensors."""
    module, _, leaf = name.rpartition(".")
    parts = module.split(".")
    match parts:
        case ["controlnet_down_blocks", index]:
            return f"zero_convs.{index}.0.{leaf}"
        case ["controlnet_mid_block"]:
            return f"middle_block_out.0.{leaf}"
        case ["controlnet_cond_embedding", "conv_in"]:
            return f"input_hint_block.0.{leaf}"
        case ["controlnet_cond_embedding", "conv_out"]:
            return f"input_hint_block.{4 * len(hint_channels) - 2}.{leaf}"
        case ["controlnet_cond_embedding", "blocks", index]:
            return f"input_hint_block.{2 * int(index) + 2}.{leaf}"
        case _:
            found = unet_renaming(BlockLayout.of_config(config)).to_foreign(name)
            assert found is not None
            return found


def ldm_tensors(network: ControlNet, prefix: str = "") -> dict[str, Tensor]:
    """A ControlNet's tensors under lllyasviel's names."""
    config = network.config.unet
    return {prefix + ldm_name(name, config): tensor.clone() for name, tensor in network.state_dict().items()}


T2I_FORMS: Mapping[str, tuple[str, T2IConfig]] = {
    "full": ("M15", T2IConfig(kind="full", channels=(32, 64, 128, 128))),
    "light": ("M15", T2IConfig(kind="light", channels=(32, 64, 128), resnets=3, hint_in=1)),
    "xl": ("MXL", T2IConfig(kind="xl", channels=(32, 64, 128, 128), hint_factor=16)),
}
"""A form of T2I-Adapter, and the mini for which it is."""


def t2i(form: str, *, seed: int = 30) -> T2IAdapter:
    """A T2I-Adapter with random weights."""
    name, config = T2I_FORMS[form]
    network = T2IAdapter(config, MINIS[name].config).eval()
    randomize(network, seed)
    return network


def t2i_twin(form: str, network: T2IAdapter) -> nn.Module:
    config = T2I_FORMS[form][1]
    kinds = {"full": "full_adapter", "light": "light_adapter", "xl": "full_adapter_xl"}
    twin = DiffusersT2IAdapter(
        in_channels=config.hint_in,
        channels=list(config.channels),
        num_res_blocks=config.resnets,
        downscale_factor=config.hint_factor,
        adapter_type=kinds[form],
    )
    twin.load_state_dict(network.state_dict())
    return twin.eval()


def author_tensors(network: T2IAdapter) -> dict[str, Tensor]:
    """A T2I-Adapter's tensors under TencentARC's names."""
    config, found = network.config, {}
    for name, tensor in network.state_dict().items():
        parts = name.removeprefix("adapter.").split(".")
        match parts:
            case ["body", stage, "resnets", layer, *leaf] if config.kind == "light":
                found[".".join(["body", stage, "body", layer, *leaf])] = tensor
            case ["body", stage, "resnets", layer, *leaf]:
                found[".".join(["body", str(int(stage) * config.resnets + int(layer)), *leaf])] = tensor
            case ["body", stage, "in_conv", *leaf] if config.kind != "light":
                found[".".join(["body", str(int(stage) * config.resnets), "in_conv", *leaf])] = tensor
            case _:
                found[".".join(parts)] = tensor
    return found


def t2i_hint(network: T2IAdapter, height: int = 16, width: int = 16) -> Tensor:
    """A hint for latents of this size."""
    rows, columns = network.hint_size(height, width)
    return torch.rand(2, network.config.hint_in, rows, columns, generator=torch.Generator().manual_seed(4))
