"""The members of each channel space that stay, and the weights of the narrower network that is made of them."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from undertow.nn.embeddings import sinusoid
from undertow.shapes import AnyTensor
from undertow.training.pruning.spaces import QUERIES, VALUES, Space, Spaces
from undertow.unet.config import UNetConfig
from undertow.unet.unet import UNet

Importance = Mapping[str, Float64[Tensor, "channels"]]
"""Of every channel, by the name of its space."""

Members = dict[str, Int[Tensor, "kept"]]
"""Channels that stay, in their order, by the name of their space."""

SINUSOID = "time_embedding.linear_1.weight"
TIMESTEPS = 1000
RIDGE = 1e-3
"""Beside the mean square of a sinusoid, 0.5: hardly more residual, and weights as large as they were."""


class Moments(NamedTuple):
    """What was measured of the network's activations: the mean square of each channel that reaches a LayerNorm, by the
    name of its weight."""

    squares: Mapping[str, Float64[Tensor, "channels"]]


def chosen(before: Spaces, after: Spaces, importance: Importance) -> Members:
    """The most important members of each space: whole normalization groups of feature maps, whole heads of attentions
    and, where those become narrower, channels within each of them; single channels elsewhere."""
    members: Members = {}
    for name, space in before.spaces.items():
        kept = after.spaces[name]
        if space.heads is None:
            units = importance[name].reshape(-1, space.unit).sum(1)
            members[name] = _channels(_top(units, kept.size // space.unit), space.unit)
        elif name.endswith(f".{QUERIES}"):
            attention = name.removesuffix(QUERIES)
            both = [importance[attention + part].reshape(space.heads, -1) for part in (QUERIES, VALUES)]
            heads = _top(sum(one.sum(1) for one in both), kept.heads)  # pyright: ignore[reportArgumentType]
            for part, one in zip((QUERIES, VALUES), both, strict=True):
                members[attention + part] = _within(one, heads, kept)
    return members


def _top(importance: Float64[Tensor, "units"], count: int) -> Int[Tensor, "count"]:
    """The most important, in their order; of equals the first."""
    return importance.argsort(descending=True, stable=True)[:count].sort().values


def _channels(units: Int[Tensor, "units"], unit: int) -> Int[Tensor, "channels"]:
    return (units[:, None] * unit + torch.arange(unit)).flatten()


def _within(importance: Float64[Tensor, "heads width"], heads: Int[Tensor, "kept"], kept: Space) -> Tensor:
    assert kept.heads is not None
    width = importance.shape[1]
    inside = [head * width + _top(importance[head], kept.size // kept.heads) for head in heads.tolist()]
    return torch.cat(inside)


def narrow(unet: UNet, config: UNetConfig, importance: Importance, moments: Moments) -> UNet:
    """A U-Net of the narrower `config` with the most important members of the given one.

    What follows from fewer members is set right: queries keep the scale of their attention, which kernels take from the
    width of a head; LayerNorms the scale of what they return, by the measured squares; and where the first level's
    width is that of the timestep's sinusoid, the first layer is fitted to the new one's frequencies.
    """
    before, after = Spaces(unet.config), Spaces(config)
    members = chosen(before, after, importance)
    tensors = {name: _sliced(tensor, before, name, members) for name, tensor in unet.state_dict().items()}
    for name, space in before.spaces.items():
        if name.endswith(f".{QUERIES}"):
            _rescale_queries(tensors, name.removesuffix(QUERIES), space, after.spaces[name])
    for name, squares in moments.squares.items():
        kept = members[before.axes[name][0][0]]
        tensors[name] = tensors[name] * (squares[kept].mean() / squares.mean()).sqrt().to(tensors[name])
    if config.timestep_sinusoid_dim != unet.config.timestep_sinusoid_dim:
        tensors |= _fitted(tensors, unet.config, config)
    narrower = UNet(config).to(device=unet.device, dtype=unet.dtype)
    narrower.load_state_dict(tensors)
    return narrower


def _sliced(tensor: AnyTensor, spaces: Spaces, name: str, members: Members) -> AnyTensor:
    for dimension, axis in enumerate(spaces.axes.get(name, ())):
        if axis:
            sizes = [spaces.spaces[one].size for one in axis]
            starts = [sum(sizes[:index]) for index in range(len(sizes))]
            kept = torch.cat([members[one] + start for one, start in zip(axis, starts, strict=True)])
            tensor = tensor.index_select(dimension, kept.to(tensor.device))
    return tensor


def _rescale_queries(tensors: dict[str, AnyTensor], attention: str, before: Space, after: Space) -> None:
    assert before.heads is not None
    assert after.heads is not None
    scale = ((after.size / after.heads) / (before.size / before.heads)) ** 0.5
    for name in (f"{attention}to_q.weight", f"{attention}to_q.bias"):
        if name in tensors and scale != 1:
            tensors[name] = tensors[name] * scale


def _fitted(tensors: Mapping[str, AnyTensor], before: UNetConfig, after: UNetConfig) -> dict[str, AnyTensor]:
    """The first layer of the time embedding for other frequencies: the least squares of its outputs over all timesteps,
    with a ridge, since slow sinusoids are nearly the same."""
    weight, bias = tensors[SINUSOID], tensors[SINUSOID.replace("weight", "bias")]
    wanted = _sinusoids(before) @ weight.double().cpu().T
    inputs = torch.cat((_sinusoids(after), torch.ones(TIMESTEPS, 1, dtype=torch.float64)), dim=1)
    products = inputs.T @ inputs + RIDGE * TIMESTEPS * torch.eye(inputs.shape[1], dtype=torch.float64)
    solution = torch.linalg.solve(products, inputs.T @ wanted)
    return {
        SINUSOID: solution[:-1].T.to(weight).contiguous(),
        SINUSOID.replace("weight", "bias"): bias + solution[-1].to(bias),
    }


def _sinusoids(config: UNetConfig) -> Float64[Tensor, "timesteps width"]:
    numbers = torch.arange(TIMESTEPS, dtype=torch.float32)
    width, shift = config.timestep_sinusoid_dim, config.frequency_shift
    return sinusoid(numbers, width, cos_first=config.cos_first, frequency_shift=shift).double()
