"""Writing a ControlNet as a model folder of diffusers'."""

import json
from pathlib import Path

import torch

from undertow.adapters.control.controlnet import ControlNet
from undertow.adapters.control.diffusers_config import control_config_to_diffusers
from undertow.checkpoints.files.atomic import write_tensors, write_text
from undertow.checkpoints.files.model_folder import CONFIG, WEIGHTS
from undertow.errors import InvalidInput


def write_control(network: ControlNet, folder: str | Path, *, dtype: torch.dtype = torch.float16) -> Path:
    """Writes `network` so that diffusers' `ControlNetModel.from_pretrained` and `read_control` read it; returns the
    folder, which is made if need be. Each file is written whole or not at all.

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
