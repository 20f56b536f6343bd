"""A network as a diffusers model folder: `config.json` and `diffusion_pytorch_model.safetensors`."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from undertow.checkpoints.contents import make_part
from undertow.checkpoints.files import read_json, write_tensors, write_text
from undertow.checkpoints.health import Health
from undertow.checkpoints.loading import LoadOptions, build_on_meta, load_network
from undertow.checkpoints.shards import folder_weights, variant_order
from undertow.errors import KeyMismatch, UnknownCheckpoint
from undertow.unet.config import UNetConfig
from undertow.unet.diffusers_config import config_from_diffusers, config_to_diffusers
from undertow.unet.unet import UNet

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def save_unet(unet: UNet, folder: str | Path, *, dtype: torch.dtype | None = None) -> Path:
    """Writes `unet` so that diffusers' `from_pretrained` and `load_unet_folder` read it; returns the folder.

    Each file is written beside its place and renamed, so that a crash or a full disk leaves the old one whole.
    Errors: `ConfigError` for an architecture that diffusers' config cannot express.
    """
    folder = Path(folder)
    config = json.dumps(config_to_diffusers(unet.config), indent=2) + "\n"
    tensors = {
        name: tensor.detach().to(device="cpu", dtype=dtype).contiguous() for name, tensor in unet.state_dict().items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    write_text(config, folder / CONFIG)
    return folder


def load_unet_folder(
    folder: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> UNet:
    """The U-Net of a diffusers model folder, or of the `unet` folder of a pipeline, in evaluation mode.

    The network is built without memory and takes the file's tensors one by one. dtype `None` keeps the file's.
    Errors: `UnknownCheckpoint`, `CorruptFile`, `KeyMismatch`, `ConfigError`, `UnsafeFile`.
    """
    folder = _model_folder(Path(folder))
    config = read_config(folder)
    weights = folder_weights(folder, variant_order(None, prefer_plain=True))
    part = make_part("unet", "", "diffusers", {name: name for name in weights.tensors})
    options = LoadOptions(dtype=dtype, device=device, validate=False)
    return load_network(build_on_meta(lambda: UNet(config)), weights, part, options, Health())


def read_config(folder: str | Path) -> UNetConfig:
    """The architecture in a diffusers model folder, or in the `unet` folder of a pipeline.

    Errors: `UnknownCheckpoint`, `CorruptFile`, `ConfigError`.
    """
    return config_from_diffusers(read_json(_model_folder(Path(folder)) / CONFIG))


def check_keys(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Every tensor present, none left over, shapes equal. Errors: `KeyMismatch` lists the differences."""
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    reshaped = [
        f"{name} {list(found[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if missing or unexpected or reshaped:
        raise KeyMismatch(path, missing, unexpected, reshaped)


def _model_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise UnknownCheckpoint(folder, "no such folder", "give a diffusers model or pipeline folder")
    if not (folder / CONFIG).is_file() and (folder / "unet" / CONFIG).is_file():
        return folder / "unet"
    return folder
