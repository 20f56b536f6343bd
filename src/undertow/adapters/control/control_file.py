"""Control networks in files: ControlNet, Control-LoRA and T2I-Adapter of every format; written as diffusers' folder."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from undertow.adapters.control.config import CONTROLNET, T2I, control_config_from_diffusers, control_config_to_diffusers
from undertow.adapters.control.control_lora import is_control_lora, read_control_lora
from undertow.adapters.control.control_refusals import refuse_other_controls
from undertow.adapters.control.controlnet import ControlNet
from undertow.adapters.control.derive import derive_control_config, require_fit
from undertow.adapters.control.t2i import T2IAdapter
from undertow.adapters.control.t2i_files import (
    is_t2i,
    t2i_config_from_diffusers,
    t2i_config_from_shapes,
    t2i_names,
)
from undertow.adapters.files.opened import OpenedAdapter, open_adapter
from undertow.adapters.lora.lora_refusals import WIDTHS
from undertow.checkpoints.files.atomic import write_text
from undertow.checkpoints.files.model_folder import CONFIG, WEIGHTS
from undertow.checkpoints.files.weights import write_tensors
from undertow.checkpoints.health import Health
from undertow.checkpoints.identify.checkpoint import PartSource
from undertow.checkpoints.identify.families import describe_family
from undertow.checkpoints.keymap import TensorMapping
from undertow.checkpoints.keymap.contents import Part, make_part
from undertow.checkpoints.keymap.prefixes import CONTROL_PREFIXES, Dialect
from undertow.checkpoints.read.loading import LoadOptions, build_on_meta, load_network
from undertow.errors import AdapterMismatch, ConfigError, InvalidInput, UnknownCheckpoint, naming_file
from undertow.state_dicts import require_layers
from undertow.unet.config import UNetConfig
from undertow.unet.unet import UNet

Network = ControlNet | T2IAdapter
ControlFormat = Literal["ControlNet", "Control-LoRA", "T2I-Adapter"]

CONTROLNET_SIGNS: Mapping[Dialect, str] = {
    "ldm": "zero_convs.0.0.weight",
    "diffusers": "controlnet_cond_embedding.conv_in.weight",
}
"""A tensor that every ControlNet has, under lllyasviel's name and under diffusers'."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ControlFile:
    """A control network in memory. content_hash: SHA-256 of the files it was read from; files with equal hashes are the
    same adapter. title: what it is, for messages. size_bytes: memory of its weights."""

    path: Path
    content_hash: str
    network: Network
    size_bytes: int
    title: str


def read_control(source: str | Path, base: UNet) -> ControlFile:
    """Opens `source` and reads the control network in it for one U-Net; see `control_from`.

    source: a diffusers model folder, a file with diffusers' or the authors' names (lllyasviel, TencentARC; also a whole
    pipeline that contains a ControlNet), or a Control-LoRA, each as safetensors or pickle, or any of these on the Hub.
    Errors: also those of `open_adapter`.
    """
    with open_adapter(source) as opened:
        return control_from(opened, base)


def control_from(opened: OpenedAdapter, base: UNet) -> ControlFile:
    """The control network in an opened file, in the U-Net's type and on its device, in evaluation mode.

    Errors: `AdapterMismatch` for another family, `UnsupportedModel` for relatives that undertow does not run,
    `KeyMismatch`, `DamagedWeights`, `ConfigError`, `CorruptFile`, `UnknownCheckpoint`.
    """
    health = Health()
    match found := control_format(opened):
        case "ControlNet":
            network = _read_controlnet(opened, base, health)
        case "Control-LoRA":
            network = read_control_lora(opened, base, health)
        case "T2I-Adapter":
            network = _read_t2i(opened, base, health)
        case None:
            raise UnknownCheckpoint(opened.path, "no control network", "give a ControlNet or a T2I-Adapter here")
    health.require(opened.path)
    return ControlFile(
        path=opened.path,
        content_hash=opened.content_hash(),
        network=network,
        size_bytes=sum(parameter.nbytes for parameter in network.parameters()),
        title=_title(found, base.config),
    )


def control_format(opened: OpenedAdapter) -> ControlFormat | None:
    """The format of a control network, recognized by tensor names alone; `None` for other files. Errors:
    `UnsupportedModel` for related networks that undertow does not run."""
    names = opened.names
    refuse_other_controls(opened.path, names, opened.config)
    if is_control_lora(names):
        return "Control-LoRA"
    if _controlnet_place(names) is not None:
        return "ControlNet"
    return "T2I-Adapter" if is_t2i(names) else None


def _controlnet_place(names: Mapping[str, str]) -> tuple[str, Dialect] | None:
    """(prefix, dialect) of a ControlNet's tensors, given names without wrapper prefixes; `None` if there is none."""
    for dialect, sign in CONTROLNET_SIGNS.items():
        for prefix in CONTROL_PREFIXES:
            if prefix + sign in names:
                return prefix, dialect
    return None


def _read_controlnet(opened: OpenedAdapter, base: UNet, health: Health) -> ControlNet:
    place = _controlnet_place(opened.names)
    assert place is not None  # it is of this kind
    prefix, dialect = place
    inside = {name.removeprefix(prefix): file for name, file in opened.names.items() if name.startswith(prefix)}
    part = make_part("controlnet", prefix, dialect, inside)
    shapes = part.shapes(opened.tensors)
    require_fit(opened.path, shapes, base.config)
    if opened.config.get("_class_name") == CONTROLNET and dialect == "diffusers":
        with naming_file(opened.path):
            config = control_config_from_diffusers(opened.config)
    else:
        config = derive_control_config(shapes, base.config, opened.path)
    require_layers(opened.path, sum(level.resnets for level in config.unet.levels), len(opened.tensors))
    network = build_on_meta(lambda: ControlNet(config, base.kernel))
    return load_network(network, PartSource(weights=opened.weights, part=part), _like(base), health)


def _read_t2i(opened: OpenedAdapter, base: UNet, health: Health) -> T2IAdapter:
    names = t2i_names(opened.names, opened.path)
    if opened.config.get("_class_name") == T2I:
        with naming_file(opened.path):
            config = t2i_config_from_diffusers(opened.config)
    else:
        shapes = {ours: tuple(opened.tensors[file].shape) for ours, file in names.items()}
        config = t2i_config_from_shapes(shapes, opened.path)
    require_layers(opened.path, config.layers, len(opened.tensors))
    try:
        network = build_on_meta(lambda: T2IAdapter(config, base.config))
    except ConfigError as err:
        made_for, own = WIDTHS[2048 if config.kind == "xl" else 768], describe_family(base.config)[2]
        problem = f"a T2I-Adapter like those of {made_for}, and the model is {own} ({err})"
        raise AdapterMismatch(opened.path, problem, f"use one that was made for {own}", made_for=made_for) from err
    mappings: Mapping[str, TensorMapping] = {file: TensorMapping(file, (ours,)) for ours, file in names.items()}
    part = Part(component="controlnet", dialect="diffusers", prefix="", mappings=mappings)
    return load_network(network, PartSource(weights=opened.weights, part=part), _like(base), health)


def _like(base: UNet) -> LoadOptions:
    return LoadOptions(dtype=base.dtype, device=base.device)


def _title(kind: str, base: UNetConfig) -> str:
    """The format, followed by the model's name if it is a published one."""
    _, variant, title, _ = describe_family(base)
    return kind if variant == "custom" else f"{kind} for {title}"


def write_control(network: ControlNet, folder: str | Path, *, dtype: torch.dtype = torch.float16) -> Path:
    """Writes `network` so that diffusers' `ControlNetModel.from_pretrained` and `read_control` can read it, and returns
    the folder, which is created if necessary. Each file is written atomically.

    Errors: `ConfigError` for what ControlNetModel cannot express, `InvalidInput` for weights not finite in `dtype`.
    """
    folder = Path(folder)
    config = json.dumps(control_config_to_diffusers(network.config), indent=2) + "\n"
    tensors = {
        name: tensor.detach().to(device="cpu", dtype=dtype).contiguous()
        for name, tensor in network.state_dict().items()
    }
    bad = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if bad:
        found = f"not finite in {dtype} in {len(bad)} tensors ({bad[0]})"
        raise InvalidInput("network", found, "finite numbers", "train it with a lower rate, or write another type")
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    write_text(config, folder / CONFIG)
    return folder
