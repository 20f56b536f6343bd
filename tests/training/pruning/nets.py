"""Tiny U-Nets with random weights for the tests of pruning, some with channels that are dead."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from tests.golden.minis import Mini, conditioning_for, latents_for, randomize
from undertow.checkpoints.write.unet_folder import save_unet
from undertow.training.pruning.narrowing import Members, chosen
from undertow.training.pruning.spaces import Spaces
from undertow.unet.conditioning import Conditioning
from undertow.unet.config import ClassLabels, CrossAttention, Level, Middle, SelfAttention, UNetConfig
from undertow.unet.unet import UNet

CONTEXT, GROUPS, KEPT = 12, 8, 2


def config(kind: str, heads: int) -> UNetConfig:
    """Two levels in 8 groups. kind: pixels, or text. The timestep's sinusoid has a width of its own."""
    text = kind == "text"
    attention = CrossAttention(heads=heads) if text else SelfAttention(heads=heads)
    return UNetConfig(
        levels=(Level(channels=16, resnets=1), Level(channels=32, resnets=1, attention=attention)),
        middle=Middle(attention=attention),
        context_dim=CONTEXT if text else None,
        added=None if text else ClassLabels(count=3),
        in_channels=3,
        out_channels=3,
        norm_groups=GROUPS,
        sinusoid_dim=16,
    )


def built(of: UNetConfig, seed: int = 0) -> UNet:
    unet = UNet(of)
    randomize(unet, seed)
    return unet.eval()


def inputs(of: UNetConfig, batch: int = 2, seed: int = 1) -> tuple[Tensor, Tensor, Conditioning]:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(batch, of.in_channels, 8, 8, generator=generator)
    timesteps = torch.randint(0, 1000, (batch,), generator=generator).float()
    if of.context_dim is not None:
        return latents, timesteps, Conditioning(context=torch.randn(batch, 5, of.context_dim, generator=generator))
    labels = torch.arange(batch) % 3
    return latents, timesteps, Conditioning(class_labels=labels if of.added is not None else None)


def predict(unet: UNet, batch: int) -> Tensor:
    """As calibration: every batch has other numbers."""
    prediction = unet(*inputs(unet.config, seed=batch))
    assert isinstance(prediction, Tensor)
    return prediction


def live_members(before: Spaces, after: Spaces) -> Members:
    """Channels for which all others can be dead without a normalization group that is partly so.

    Where a decoder's ResBlock reads a stream of 32 channels and a skip connection of 16, its 8 groups have 6 channels
    and one of them lies across the border: the last 8 of the 32 and the first 4 of the 16 are two whole groups of 6.
    """
    rising = {name: torch.arange(space.size, dtype=torch.float64) for name, space in before.spaces.items()}
    falling = {name: -one for name, one in rising.items()}
    mixed = {
        name: rising[name] if space.size == 32 and space.unit == 4 else falling[name]
        for name, space in before.spaces.items()
    }
    return chosen(before, after, mixed)


@torch.no_grad()
def kill(unet: UNet, live: Members) -> None:
    """Makes all channels dead that are not among `live`: what writes them is zero, as is what their norms add.
    What LayerNorms receive has a mean of zero, so that what is dead stays so behind them."""
    spaces, tensors = Spaces(unet.config), dict(unet.named_parameters())
    for name, axes in spaces.axes.items():
        is_norm, alone = ".norm" in name or "group_norm" in name or "conv_norm" in name, len(axes) == 1
        axis = axes[1] if name == "class_embedding.weight" else axes[0]
        if not axis or (is_norm and name.endswith("weight")) or "ff.net.0" in name:
            continue
        dimension = 1 if name == "class_embedding.weight" else 0
        assert alone or not is_norm
        mask = torch.cat([alive(spaces.spaces[one].size, live[one]) for one in axis])
        shape = [-1 if index == dimension else 1 for index in range(tensors[name].ndim)]
        tensors[name].mul_(mask.reshape(shape))
        if axis[0].endswith(".tokens") and not is_norm:
            tensors[name][live[axis[0]]] -= tensors[name][live[axis[0]]].mean(0)
    for name, space in spaces.spaces.items():
        if name.endswith(".ff"):
            dead = alive(space.size, live[name])
            tensors[f"{name}.net.0.proj.weight"].mul_(torch.cat((dead, dead))[:, None])
            tensors[f"{name}.net.0.proj.bias"].mul_(torch.cat((dead, dead)))


@torch.no_grad()
def weaken(unet: UNet) -> None:
    """Of random channels in each space, readers see little: as in a trained network, not all matter alike."""
    spaces, generator = Spaces(unet.config), torch.Generator().manual_seed(5)
    weights = {
        name: torch.rand(space.size // space.unit, generator=generator).square().repeat_interleave(space.unit)
        for name, space in spaces.spaces.items()
    }
    for name, tensor in unet.named_parameters():
        axes = spaces.axes.get(name, ())
        if len(axes) == 2 and axes[1] and name != "class_embedding.weight":
            row = torch.cat([weights[one] for one in axes[1]])
            tensor.mul_(row.reshape(1, -1, *[1] * (tensor.ndim - 2)))


def alive(size: int, members: Iterable[int] | Tensor) -> Tensor:
    mask = torch.zeros(size)
    mask[torch.as_tensor(members)] = 1
    return mask


def same_members(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Spaces whose members differ."""
    return [name for name, one in expected.items() if not torch.equal(found[name], one)]


def same_in_diffusers(unet: UNet, mini: Mini, folder: Path) -> UNet2DConditionModel:
    """Writes a U-Net that a mini became, and returns what diffusers makes of it, which predicts the same."""
    save_unet(unet, folder)
    theirs = UNet2DConditionModel.from_pretrained(folder).eval()
    latents, timesteps, given = latents_for(mini), torch.tensor([3.0, 871.5]), conditioning_for(mini)
    added = {} if given.pooled is None else {"text_embeds": given.pooled, "time_ids": given.time_ids}
    with torch.no_grad():
        expected = theirs(
            latents, timesteps, encoder_hidden_states=given.context, added_cond_kwargs=added, return_dict=False
        )[0]
        assert torch.allclose(unet(latents, timesteps, given), expected, rtol=1e-4, atol=1e-4)
    return theirs
