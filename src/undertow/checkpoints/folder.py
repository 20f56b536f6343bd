"""A network as a diffusers model folder: `config.json` and `diffusion_pytorch_model.safetensors`."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from undertow.errors import CorruptFile, KeyMismatch, UnknownCheckpoint
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
    Errors: `UnknownCheckpoint`, `CorruptFile`, `KeyMismatch`, `ConfigError`.
    """
    folder = _model_folder(Path(folder))
    config = read_config(folder)
    with torch.device("meta"):
        unet = UNet(config)
    tensors = read_tensors(folder / WEIGHTS, dtype=dtype, device=device)
    expected = unet.state_dict()
    check_keys(folder / WEIGHTS, expected, tensors)
    unet.load_state_dict(tensors, assign=True)
    return unet.eval()


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


def read_tensors(
    path: Path, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> dict[str, Tensor]:
    """All tensors of a safetensors file; floating-point ones as `dtype`. Errors: `UnknownCheckpoint`, `CorruptFile`."""
    if not path.is_file():
        raise UnknownCheckpoint(path, "no such file", f"a model folder holds {CONFIG} and {WEIGHTS}")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: _cast(file.get_tensor(name), dtype, device) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as err:
        raise CorruptFile(path, f"not a whole safetensors file ({err})", "copy or download it again") from err


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """A safetensors file, written beside its place and renamed when whole."""
    draft = path.with_name(path.name + ".part")
    try:
        save_file(dict(tensors), draft, metadata=dict(metadata))
        _sync(draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Errors: `UnknownCheckpoint` when there is no file, `CorruptFile` when it is not JSON."""
    if not path.is_file():
        raise UnknownCheckpoint(path, "no such file", f"a model folder holds {CONFIG} and {WEIGHTS}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as err:
        raise CorruptFile(path, f"not JSON ({err})", "copy or download it again") from err
    if not isinstance(content, dict):
        raise CorruptFile(path, f"a JSON {type(content).__name__}, not an object", "copy or download it again")
    return content


def write_text(text: str, path: Path) -> None:
    """A text file, written beside its place and renamed when whole."""
    draft = path.with_name(path.name + ".part")
    try:
        draft.write_text(text, encoding="utf-8")
        _sync(draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _model_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise UnknownCheckpoint(folder, "no such folder", "give a diffusers model or pipeline folder")
    if not (folder / CONFIG).is_file() and (folder / "unet" / CONFIG).is_file():
        return folder / "unet"
    return folder


def _cast(tensor: Tensor, dtype: torch.dtype | None, device: torch.device | str | None) -> Tensor:
    return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
