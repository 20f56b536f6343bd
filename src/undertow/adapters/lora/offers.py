"""What a model offers to adapters, without loading it: from the headers of its files, or from its published form."""

from collections.abc import Iterator
from pathlib import Path

from undertow.adapters.lora.targets import NetworkName, Shapes, Targets
from undertow.checkpoints.identify.checkpoint import Checkpoint, OpenOptions
from undertow.checkpoints.identify.families import find_family
from undertow.checkpoints.identify.opening import open_checkpoint
from undertow.checkpoints.keymap.text_names import ROOT
from undertow.checkpoints.read.loading import build_on_meta
from undertow.checkpoints.read.text_loading import ENCODERS
from undertow.encoders.clip_config import PUBLISHED, ClipTextConfig
from undertow.errors import MissingComponent
from undertow.unet.config import UNetConfig
from undertow.unet.unet import UNet


def targets_of_source(source: str | Path, opening: OpenOptions | None = None) -> Targets:
    """Of a model's file, folder or Hub id; no weight is read. Errors: kinds of `CheckpointError`, `ConfigError`."""
    with open_checkpoint(source, opening) as checkpoint:
        return targets_of_checkpoint(checkpoint)


def targets_of_checkpoint(checkpoint: Checkpoint) -> Targets:
    """Of an opened checkpoint. Errors: `MissingComponent` for one without a U-Net."""
    found = checkpoint.identification
    if found.config is None:
        raise MissingComponent(checkpoint.path, "U-Net", "give a model with one")
    encoders: dict[NetworkName, Shapes] = {}
    for kind in ENCODERS[found.family]:
        if kind in checkpoint.parts:
            located = checkpoint.parts[kind]
            encoders[kind] = located.part.shapes(located.weights.tensors)
    return Targets(found.config, _unet_shapes(found.config), encoders)


def targets_of_config(config: UNetConfig) -> Targets:
    """Of an architecture; with the text encoders that its family was published with, if it is a published one."""
    family = find_family(config)
    kinds = () if family is None else ENCODERS[family.name]
    return Targets(config, _unet_shapes(config), {kind: dict(_clip_shapes(PUBLISHED[kind])) for kind in kinds})


def _unet_shapes(config: UNetConfig) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in build_on_meta(lambda: UNet(config)).state_dict().items()}


def _clip_shapes(config: ClipTextConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The layers of a CLIP text network under transformers' names."""
    width, inner = config.width, config.intermediate
    layers = {
        **{f"self_attn.{projection}": (width, width) for projection in ("q_proj", "k_proj", "v_proj", "out_proj")},
        "mlp.fc1": (inner, width),
        "mlp.fc2": (width, inner),
        "layer_norm1": (width,),
        "layer_norm2": (width,),
    }
    for index in range(config.layers):
        for name, shape in layers.items():
            yield f"{ROOT}encoder.layers.{index}.{name}.weight", shape
            yield f"{ROOT}encoder.layers.{index}.{name}.bias", shape[:1]
    yield f"{ROOT}final_layer_norm.weight", (width,)
    yield f"{ROOT}final_layer_norm.bias", (width,)
    yield "text_projection.weight", (config.projection, width)
