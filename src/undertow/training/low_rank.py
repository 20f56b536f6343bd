"""Trainable low-rank updates: which layers get one, and how a frozen network computes with them.

In a U-Net an update is the content of a slot of the weight port (`nn.adaptable`), so what is trained is computed as it
will be served. A text encoder of transformers' modules has no port: its forward is called with W + gain · up down in
the place of W.
"""

import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from undertow.encoders.clip import OutputSelection, TextEncoder
from undertow.errors import InvalidInput
from undertow.nn.adaptable import Conv2d, Linear
from undertow.unet.unet import UNet

TRANSFORMERS = ("*.attentions.*",)
"""Sites of sd-scripts' standard LoRA: every projection and feed-forward layer of the U-Net's transformers."""

TEXT_LAYERS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
"""What is adapted in each layer of a text encoder."""


class TrainableUpdate(nn.Module):
    """up · down for one layer, in the shape of a slot. down is uniform with bound 1 / sqrt(inputs), as torch
    initializes a linear layer and sd-scripts a LoRA; up is zero, so that training starts from the base
    (arXiv:2106.09685, section 4.1)."""

    def __init__(self, rank: int, inputs: int, outputs: int, generator: torch.Generator):
        super().__init__()
        down = torch.empty(rank, inputs)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
        self.down = nn.Parameter(down[None])
        self.up = nn.Parameter(torch.zeros(1, outputs, rank))

    def delta(self) -> Float[Tensor, "outputs inputs"]:
        """What is added to the weight of a linear layer, for a gain of 1."""
        return self.up[0] @ self.down[0]


class TrainableUpdates(nn.Module):
    """The updates of some layers of one network, by the layer's name."""

    def __init__(self, layers: Mapping[str, nn.Module], rank: int, generator: torch.Generator):
        super().__init__()
        self.updates = nn.ModuleDict(
            {_key(name): TrainableUpdate(rank, *widths(layer), generator) for name, layer in layers.items()}
        )

    def __len__(self) -> int:
        return len(self.updates)

    def items(self) -> Iterable[tuple[str, TrainableUpdate]]:
        """Layers and their updates, in the network's order."""
        return ((_name(key), cast(TrainableUpdate, update)) for key, update in self.updates.items())


def unet_sites(unet: UNet, patterns: Sequence[str]) -> dict[str, Linear | Conv2d]:
    """The layers whose names match any of `patterns` (`fnmatch`: "*.attentions.*", "*.attn2.to_k"), in the network's
    order.

    Errors: `InvalidInput` for a pattern that matches no linear layer or convolution; it offers the nearest that do.
    """
    layers = {name: layer for name, layer in unet.named_modules() if isinstance(layer, Linear | Conv2d)}
    if not patterns:
        raise InvalidInput("sites", "empty", "at least one pattern", f"for example {TRANSFORMERS[0]}")
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise InvalidInput(
                "sites",
                repr(pattern),
                f"a pattern that matches some of the {len(layers)} linear layers and convolutions",
                f"near it are {', '.join(nearest_patterns(pattern, layers))}",
            )
    return {name: layer for name, layer in layers.items() if any(fnmatchcase(name, each) for each in patterns)}


def nearest_patterns(pattern: str, names: Iterable[str]) -> list[str]:
    """Patterns like `pattern` that do match: ends of names that look like it."""
    wanted = pattern.strip("*.")
    parts = [name.split(".") for name in names]
    lengths = range(1, wanted.count(".") + 3)
    ends = {
        ".".join(each[-length:]): len(each) == length for each in parts for length in lengths if length <= len(each)
    }
    near = get_close_matches(wanted, ends, n=3, cutoff=0.3)
    return [repr(end if ends[end] else f"*.{end}") for end in near] or [repr(TRANSFORMERS[0])]


def text_sites(encoder: TextEncoder, selection: OutputSelection) -> dict[str, nn.Module]:
    """The layers of a text encoder that what is read depends on, by transformers' names."""
    present = len(encoder.clip.encoder.layers)
    read = present if selection.pooled else min(present, encoder.config.layers - (selection.skip - 1))
    names = (f"encoder.layers.{index}.{layer}" for index in range(read) for layer in TEXT_LAYERS)
    return {name: encoder.clip.get_submodule(name) for name in names}


@contextmanager
def in_slots(unet: UNet, updates: TrainableUpdates) -> Generator[None]:
    """Within it, slot 0 of each adapted layer is its update, and gradients reach nothing else of the network.

    Afterwards the network is as it was, also in what it had in its slots.
    """
    layers = {name: cast(Linear | Conv2d, unet.get_submodule(name)) for name, _ in updates.items()}
    before = {name: layer.slots for name, layer in layers.items()}
    with frozen(unet):
        try:
            for name, update in updates.items():
                layers[name].allocate_slots(1, update.down.shape[1])
                slots = layers[name].slots
                assert slots is not None
                slots.down, slots.up = update.down, update.up
            yield
        finally:
            for name, layer in layers.items():
                layer.slots = before[name]


@contextmanager
def frozen(*networks: nn.Module) -> Generator[None]:
    """Within it no parameter of the networks learns."""
    learning = [parameter for network in networks for parameter in network.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def adapted_weights(encoder: TextEncoder, updates: TrainableUpdates, gain: float) -> dict[str, Tensor]:
    """The encoder's changed weights, for `torch.func.functional_call`."""
    weights = dict(encoder.clip.named_parameters())
    return {
        f"clip.{name}.weight": weights[f"{name}.weight"] + gain * update.delta() for name, update in updates.items()
    }


def widths(layer: nn.Module) -> tuple[int, int]:
    """Inputs and outputs; the inputs of a convolution are channels times kernel cells."""
    weight = cast(Tensor, layer.weight)
    return weight[0].numel(), weight.shape[0]


def _key(name: str) -> str:
    """A name that a module of torch may have."""
    return name.replace(".", "/")


def _name(key: str) -> str:
    return key.replace("/", ".")
