"""The inputs of an exported network: their shapes, which axes may have another size, and examples of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from undertow.export.calls import (
    GAIN,
    KEYS,
    LORA_DOWN,
    LORA_UP,
    MIDDLE,
    RESIDUAL,
    VALUES,
    lora_layers,
)
from undertow.unet.config import ClassLabels, TextTime
from undertow.unet.unet import UNet

Shape = tuple[int, ...]
Tensors = Mapping[str, Tensor]

INFERRED = "inferred"
"""An axis whose size follows from those that have names."""


class Sizes(NamedTuple):
    """What a forward's shapes follow from. height, width: in cells. tokens: of the text."""

    rows: int
    height: int
    width: int
    tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Input:
    """shape: at given sizes. free: names of the axes that may have another size. make: an example of a shape."""

    shape: Callable[[Sizes], Shape]
    free: Mapping[int, str] = field(default_factory=dict)
    make: Callable[[Shape], Tensor]


ROWS = {0: "rows"}
MAP = {0: "rows", 2: "height", 3: "width"}


def examples(inputs: Mapping[str, Input], sizes: Sizes) -> dict[str, Tensor]:
    """Numbers of about the size that the network was trained on, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {name: one.make(one.shape(sizes)) for name, one in inputs.items()}


def feature_map(channels: int, dtype: torch.dtype, *, scale: int = 1) -> Input:
    """[rows, channels, height, width] of `scale` times the size in cells."""
    names = {0: "rows", 2: "height", 3: "width"} if scale == 1 else {0: "rows", 2: "pixel_height", 3: "pixel_width"}
    return Input(
        shape=lambda at: (at.rows, channels, scale * at.height, scale * at.width), free=names, make=_normal(dtype)
    )


def token_ids(positions: int, vocabulary: int) -> Input:
    """[rows, positions] of a text encoder."""
    return Input(
        shape=lambda at: (at.rows, positions), free=ROWS, make=lambda shape: torch.randint(0, vocabulary, shape)
    )


def network_inputs(unet: UNet, dtype: torch.dtype) -> dict[str, Input]:
    """Latents, timesteps and the fields of `Conditioning` that the network reads."""
    config = unet.config
    most = 1000.0 if config.max_timestep is None else config.max_timestep
    found = {
        "latents": feature_map(config.in_channels, dtype),
        "timesteps": Input(shape=_each_row, free=ROWS, make=lambda shape: torch.rand(shape) * (most - 1)),
    }
    if (width := config.context_dim) is not None:
        found["context"] = Input(
            shape=lambda at: (at.rows, at.tokens, width), free={0: "rows", 1: "tokens"}, make=_normal(dtype)
        )
    match config.added:
        case TextTime(pooled_dim=pooled, ids=ids):
            found["pooled"] = Input(shape=lambda at: (at.rows, pooled), free=ROWS, make=_normal(dtype))
            found["time_ids"] = Input(
                shape=lambda at: (at.rows, ids), free=ROWS, make=lambda shape: torch.rand(shape) * 1024
            )
        case ClassLabels(rows=labels):
            found["class_labels"] = Input(
                shape=_each_row, free=ROWS, make=lambda shape: torch.randint(0, labels, shape)
            )
        case None:
            pass
    if config.guidance_dim is not None:
        found["guidance"] = Input(shape=_each_row, free=ROWS, make=lambda shape: 1 + 6 * torch.rand(shape))
    return found


def residual_inputs(unet: UNet, dtype: torch.dtype) -> dict[str, Input]:
    """What a ControlNet adds to the stored skip connections and to the middle block."""
    count = len(unet.config.skip_shapes(8, 8))

    def shape(index: int) -> Callable[[Sizes], Shape]:
        return lambda at: (at.rows, *unet.config.skip_shapes(at.height, at.width)[index])

    axes = {0: "rows", 2: INFERRED, 3: INFERRED}
    names = {**{f"{RESIDUAL}{index}": index for index in range(count)}, MIDDLE: count - 1}
    return {name: Input(shape=shape(index), free=axes, make=_normal(dtype)) for name, index in names.items()}


def reference_inputs(unet: UNet, tokens: int, dtype: torch.dtype) -> dict[str, Input]:
    """Keys and values of reference pictures at every cross-attention, and how strongly they act."""

    def tokens_of(width: int) -> Input:
        return Input(shape=lambda at: (at.rows, tokens, width), free=ROWS, make=_normal(dtype))

    sites = unet.config.cross_attentions()
    pairs = {site + end: tokens_of(width) for site, width in sites.items() for end in (KEYS, VALUES)}
    return {**pairs, GAIN: Input(shape=_each_row, free=ROWS, make=torch.rand)}


def lora_inputs(unet: UNet, rank: int, dtype: torch.dtype) -> dict[str, Input]:
    """The low-rank update of every layer, one for all rows. Its scale is part of `up`, and zeros change nothing."""
    found: dict[str, Input] = {}
    for name, layer in lora_layers(unet):
        outputs, inputs = layer.weight.shape[0], layer.weight[0].numel()
        found[name + LORA_DOWN] = _fixed((rank, inputs), inputs**-0.5, dtype)
        found[name + LORA_UP] = _fixed((outputs, rank), 0.1, dtype)
    return found


def _fixed(shape: Shape, deviation: float, dtype: torch.dtype) -> Input:
    return Input(shape=lambda _: shape, make=lambda size: (deviation * torch.randn(size)).to(dtype))


def _each_row(at: Sizes) -> Shape:
    return (at.rows,)


def _normal(dtype: torch.dtype) -> Callable[[Shape], Tensor]:
    return lambda shape: torch.randn(shape).to(dtype)
