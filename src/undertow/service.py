"""The Python facade: loading."""

from importlib.resources import files
from pathlib import Path
from typing import Literal

import torch

from undertow.checkpoints.loading import LoadOptions
from undertow.checkpoints.unet_loading import load_unet_from, require_dtype
from undertow.errors import InvalidInput, UnknownCheckpoint
from undertow.unet.compiled import compile_unet
from undertow.unet.unet import UNet

Backend = Literal["eager", "compile"]


def embedded_models() -> dict[str, Path]:
    """Name and folder of the models that ship in the package."""
    root = Path(str(files("undertow"))) / "models"
    return {folder.name: folder for folder in sorted(root.iterdir()) if folder.is_dir()} if root.is_dir() else {}


def load_unet(
    source: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    backend: Backend = "eager",
) -> UNet:
    """A U-Net, ready to call, from a .safetensors file, a diffusers model or pipeline folder, the name of an embedded
    model, or a Hub id (owner/name).

    dtype: `None` keeps the file's. backend: "eager", or "compile" for `torch.compile` (the first call of each size
    takes a minute or two, every other is faster). Errors: `CheckpointError` and its kinds, `ConfigError`,
    `InvalidInput`.

        unet = undertow.load_unet("digits-flow", dtype=torch.float32)
    """
    if backend not in ("eager", "compile"):
        raise InvalidInput("backend", repr(backend), "'eager' or 'compile'")
    require_dtype("dtype", dtype)
    embedded = embedded_models()
    place = embedded.get(str(source), source)
    if "/" not in str(source) and not Path(place).exists():
        raise UnknownCheckpoint(
            source, "no such file or folder and no such embedded model", f"embedded: {', '.join(embedded)}"
        )
    # Channels-last memory: the layout that convolution libraries compute in, on CPUs and GPUs (benchmarks/unet.py).
    unet = load_unet_from(place, LoadOptions(dtype=dtype, device=device, channels_last=True))
    return compile_unet(unet) if backend == "compile" else unet
