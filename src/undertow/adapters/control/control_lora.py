"""Control-LoRA: a ControlNet as what it differs by from one U-Net, as matrices of low rank.

    W = W_unet + up down,   b = the file's

Layers with `.up` and `.down` are the U-Net's plus their product, at strength 1; whole tensors (zero convolutions, hint
embedder, norms, and the biases of the former) are the file's; what is not in the file is the U-Net's. Names are
lllyasviel's. Source: ComfyUI's `comfy/controlnet.py` (ControlLora). diffusers 0.42 leaves the biases of layers of low
rank out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor

from undertow.adapters.control.config import ControlNetConfig
from undertow.adapters.control.controlnet import ControlNet
from undertow.adapters.control.derive import EMBEDDING, hint_channels, hint_in, made_for_model, size
from undertow.adapters.files.opened import OpenedAdapter
from undertow.checkpoints.health import Health
from undertow.checkpoints.identify.families import describe_family
from undertow.checkpoints.keymap import control_renaming
from undertow.checkpoints.keymap.prefixes import CONTROL_PREFIXES
from undertow.checkpoints.read.loading import build_on_meta
from undertow.errors import AdapterMismatch, KeyMismatch
from undertow.nn.quantized import plain_weights
from undertow.unet.unet import UNet

MARKER = "lora_controlnet"
UP, DOWN = ".up", ".down"
FIRST = "conv_in.weight"
AnyTensor = Shaped[Tensor, "..."]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A Control-LoRA's tensors: the file's names by ours. up, down: by the layer. unknown: names without a rule."""

    whole: Mapping[str, str]
    up: Mapping[str, str]
    down: Mapping[str, str]
    unknown: tuple[str, ...]


def is_control_lora(names: Mapping[str, str]) -> bool:
    """Whether names, in their bare form, are those of a Control-LoRA."""
    return MARKER in names or any(
        f"{prefix}input_hint_block.0.weight" in names and f"{prefix}input_blocks.0.0.up" in names
        for prefix in CONTROL_PREFIXES
    )


def read_control_lora(opened: OpenedAdapter, base: UNet, health: Health) -> ControlNet:
    """The ControlNet that a file and the U-Net it is read for make, in the U-Net's type.

    Errors: `AdapterMismatch` for another U-Net, `KeyMismatch`, `CorruptFile`.
    """
    parts = _sort(opened)
    shapes = _shapes(opened, parts)
    hint = f"{EMBEDDING}.conv_in.weight"
    if size(shapes, hint, 1) < 1:
        raise KeyMismatch(opened.path, [hint])
    # An inpainting model's first layer looks at more than the latents, which come first.
    latents = _flat(shapes.get(FIRST, tuple(base.conv_in.weight.shape)))[1] // base.conv_in.weight[0, 0].numel()
    unet = replace(base.config, guidance_dim=None, in_channels=min(latents, base.config.in_channels))
    config = ControlNetConfig(unet=unet, hint_channels=hint_channels(shapes), hint_in=hint_in(shapes))
    network = build_on_meta(lambda: ControlNet(config, base.kernel))
    expected = network.state_dict()
    own = {**plain_weights(base), FIRST: base.conv_in.weight.detach()[:, : unet.in_channels]}
    _require_pieces(opened.path, parts, shapes, {name: tuple(one.shape) for name, one in expected.items()}, base)
    merged: dict[str, AnyTensor] = {}
    with opened.weights.reader() as read:

        def piece(name: str) -> AnyTensor:
            tensor = read(name)
            health.add(name, tensor, target=base.dtype)
            return tensor.to(device=base.device, dtype=torch.float32, copy=True)

        for name, like in expected.items():
            layer = name.removesuffix(".weight")
            if name in parts.whole:
                tensor = piece(parts.whole[name])
            elif layer in parts.up and name != layer:
                change = piece(parts.up[layer]).flatten(1) @ piece(parts.down[layer]).flatten(1)
                tensor = own[name].float() + change.reshape(own[name].shape)
            else:
                tensor = own[name].clone()
            merged[name] = tensor.reshape(like.shape).to(device=base.device, dtype=base.dtype)
    network.load_state_dict(merged, assign=True)
    return network.eval()


def _sort(opened: OpenedAdapter) -> Parts:
    names = opened.names
    prefix = next((p for p in CONTROL_PREFIXES if f"{p}input_hint_block.0.weight" in names), "")
    inside = {name.removeprefix(prefix): file for name, file in names.items() if name != MARKER}
    # The table counts a level's layers by their whole weights.
    renaming = control_renaming({name.replace(UP, ".weight") if name.endswith(UP) else name for name in inside})
    whole: dict[str, str] = {}
    low: dict[str, dict[str, str]] = {UP: {}, DOWN: {}}
    unknown = []
    for name, file in inside.items():
        ours = renaming.to_ours(name)
        ending = next((ending for ending in (UP, DOWN) if name.endswith(ending)), None)
        if ours is None:
            unknown.append(file)
        elif ending is None:
            whole[ours] = file
        else:
            low[ending][ours.removesuffix(ending)] = file
    return Parts(whole=whole, up=low[UP], down=low[DOWN], unknown=tuple(unknown))


def _shapes(opened: OpenedAdapter, parts: Parts) -> dict[str, tuple[int, ...]]:
    """Of all weights: whole ones as they are, products as matrices."""
    tensors = opened.tensors
    shapes = {ours: tuple(tensors[file].shape) for ours, file in parts.whole.items()}
    for layer in parts.up.keys() & parts.down.keys():
        up, down = tensors[parts.up[layer]], tensors[parts.down[layer]]
        if up.shape and down.shape and down.shape[0]:
            shapes[f"{layer}.weight"] = (up.shape[0], down.count // down.shape[0])
    return shapes


def _require_pieces(
    path: Path,
    parts: Parts,
    shapes: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    base: UNet,
) -> None:
    """Passes when every layer of the network is the U-Net's, the file's, or the sum of both."""
    reshaped = [name for name, shape in shapes.items() if name in expected and _flat(shape) != _flat(expected[name])]
    foreign = [name for name in shapes if name not in expected]
    own = plain_weights(base)
    if reshaped or any(name.startswith(("down_blocks.", "mid_block.", "add_embedding.")) for name in foreign):
        made_for, title = made_for_model(shapes), describe_family(base.config)[2]
        first = next(iter([*reshaped, *foreign]))
        raise AdapterMismatch(
            path,
            f"a Control-LoRA for {made_for}, and the model is {title} ({first} is {list(shapes[first])}, "
            f"{list(expected.get(first, ())) or 'nothing'} there)",
            f"use one that was made for {title}, or load {made_for}",
            made_for=made_for,
            reshaped=reshaped,
            unmatched=foreign,
        )
    halves = [f"{layer} without its other half" for layer in sorted(parts.up.keys() ^ parts.down.keys())]
    missing = sorted(name for name in expected if name not in shapes and name not in own)
    if missing or halves or foreign or parts.unknown:
        raise KeyMismatch(path, [*missing, *halves], [*foreign, *parts.unknown])


def _flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A weight's shape as a matrix."""
    return shape if len(shape) < 2 else (shape[0], prod(shape[1:]))
