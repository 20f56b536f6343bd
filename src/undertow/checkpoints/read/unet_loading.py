"""Loads a U-Net from any source."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from undertow.attention.chosen import stored_kernel
from undertow.checkpoints.files.model_folder import find_unet_folder, folder_weights, variant_order
from undertow.checkpoints.health import Health
from undertow.checkpoints.identify.checkpoint import Checkpoint, OpenOptions, PartSource
from undertow.checkpoints.identify.opening import open_checkpoint
from undertow.checkpoints.identify.pipeline_folder import read_config
from undertow.checkpoints.keymap.contents import make_part
from undertow.checkpoints.keymap.prefixes import Component
from undertow.checkpoints.read.dtypes import require_dtype
from undertow.checkpoints.read.loading import LoadOptions, build_on_meta, load_network, part_shapes
from undertow.checkpoints.read.quantizing import find_quantization
from undertow.errors import MissingComponent
from undertow.quantization import Quantization
from undertow.state_dicts import Shapes, require_layers
from undertow.unet.unet import UNet


def load_unet_from(
    source: str | Path,
    options: LoadOptions | None = None,
    opening: OpenOptions | None = None,
    quantization: Quantization | Literal["stored"] | None = None,
) -> UNet:
    """The U-Net of a single file, a folder or a Hub id, in evaluation mode. quantization: as in `load_model`.

    Errors: every kind of `CheckpointError`, `ConfigError`, `InvalidInput`.
    """
    options = LoadOptions() if options is None else options
    require_dtype("dtype", options.dtype)
    opening = OpenOptions(prefer_plain=options.dtype == torch.float32) if opening is None else opening
    health = Health()
    with open_checkpoint(source, opening) as checkpoint:
        parts: dict[Component, PartSource] = {name: one for name, one in checkpoint.parts.items() if name == "unet"}

        def shapes() -> dict[Component, Shapes]:
            return {name: part_shapes(checkpoint, name, one) for name, one in parts.items()}

        found = find_quantization(quantization, parts, shapes)
        found.require(options.device)
        options = replace(options, quantized=found.layers.get("unet", {}))
        unet = read_unet(checkpoint, options, health)
        health.require(checkpoint.path)
    return unet


def load_unet_folder(
    folder: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> UNet:
    """The U-Net of a diffusers model folder, or of the `unet` folder of a pipeline, in evaluation mode.

    The network is built without memory and takes the file's tensors one by one. dtype `None` keeps the file's.
    Errors: `UnknownCheckpoint`, `CorruptFile`, `KeyMismatch`, `ConfigError`, `UnsafeFile`.
    """
    folder = find_unet_folder(Path(folder))
    config = read_config(folder)
    weights = folder_weights(folder, variant_order(None, prefer_plain=True))
    part = make_part("unet", "", "diffusers", {name: name for name in weights.tensors})
    options = LoadOptions(dtype=dtype, device=device, validate=False)
    source = PartSource(weights=weights, part=part)
    require_layers(weights.path, config.layers, len(weights.tensors))
    return load_network(build_on_meta(lambda: UNet(config)), source, options, Health())


def read_unet(checkpoint: Checkpoint, options: LoadOptions, health: Health) -> UNet:
    """The U-Net of an opened checkpoint. Errors: `MissingComponent`, `KeyMismatch`, `CorruptFile`, `ConfigError`;
    `InvalidInput` for a kernel that is unknown or not for this model or device; `MissingDependency`."""
    config, source = checkpoint.identification.config, checkpoint.parts.get("unet")
    if config is None or source is None:
        raise MissingComponent(checkpoint.path, "U-Net", f"it holds {part_names(checkpoint)}")
    require_layers(source.weights.path, config.layers, len(source.weights.tensors))
    kernel = stored_kernel(options.attention, float32_logits=config.upcast_attention, device=options.device)
    unet = build_on_meta(lambda: UNet(config, kernel))
    return load_network(unet, source, options, health)


def part_names(checkpoint: Checkpoint) -> str:
    """The parts of a checkpoint, for messages."""
    return ", ".join(sorted(checkpoint.parts)) or "nothing that undertow reads"
