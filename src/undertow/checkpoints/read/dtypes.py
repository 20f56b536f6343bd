"""The type of each part's weights, decided from headers alone before any of them is read."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from undertow.checkpoints.identify.checkpoint import PartSource
from undertow.checkpoints.keymap.prefixes import Component
from undertow.errors import CheckpointError, InvalidInput
from undertow.known_names import require_device_name
from undertow.processor import IMITATED, computes
from undertow.quantization import METADATA
from undertow.vae.config import VAEConfig
from undertow.vae.precision import choose_dtype

PLAIN_TYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Types that networks compute in."""


@dataclass(frozen=True, kw_only=True)
class PartDType:
    """The types of one part's weights.

    dtype: the type that they are rounded to, as asked for or as stored. compute_dtype: the type that they are then kept
    and computed in. It is another one where the device only imitates the first, or where the VAE would overflow in it;
    `note` says so.
    """

    dtype: torch.dtype
    compute_dtype: torch.dtype
    note: str | None = None


def choose_dtypes(
    stored: Mapping[Component, torch.dtype],
    *,
    dtype: torch.dtype | None,
    vae_dtype: torch.dtype | None,
    device: torch.device | str | None,
    vae_config: VAEConfig | None,
) -> dict[Component, PartDType]:
    """The types of every part that will be read, in the order of `stored`.

    stored: the type that most of a part's values have in the file (`stored_dtype`). dtype, vae_dtype: asked for; `None`
    keeps the stored one, for the VAE `dtype`. A network computes in the type that was asked for, also in float16 on a
    CPU, but not in bfloat16 on a device without instructions for it. For a VAE whose type was not asked for, see
    `vae.precision.choose_dtype`.
    """
    place = "cpu" if device is None else device
    chosen: dict[Component, PartDType] = {}
    for component, own in stored.items():
        asked = own if dtype is None else dtype
        if component != "vae":
            chosen[component] = _network_dtype(asked, place, keep=dtype == torch.float16)
        elif vae_dtype is not None:
            chosen[component] = PartDType(dtype=vae_dtype, compute_dtype=vae_dtype)
        else:
            assert vae_config is not None
            chosen[component] = _vae_dtype(asked, place, vae_config)
    return chosen


def _network_dtype(asked: torch.dtype, device: torch.device | str, *, keep: bool) -> PartDType:
    if keep or computes(asked, device):
        return PartDType(dtype=asked, compute_dtype=asked)
    name = str(asked).removeprefix("torch.")
    note = f"{name} weights compute in float32, which takes its memory: {IMITATED[asked]}"
    return PartDType(dtype=asked, compute_dtype=torch.float32, note=note)


def _vae_dtype(asked: torch.dtype, device: torch.device | str, config: VAEConfig) -> PartDType:
    choice = choose_dtype(config, asked, device)
    note = None if choice.dtype == asked else f"VAE in {choice.dtype}: {choice.reason}"
    return PartDType(dtype=asked, compute_dtype=choice.dtype, note=note)


def stored_dtype(source: PartSource) -> torch.dtype:
    """The type that most values of a part have, among those that networks compute in: 8-bit floats become float16,
    float64 becomes float32. Of a file that undertow quantized the type of what was left as it was counts. Errors:
    `CheckpointError` for a part without floating-point weights."""
    counts: dict[torch.dtype, int] = {}
    ours = METADATA in source.weights.metadata
    for name in source.mappings:
        info = source.weights.tensors[name]
        if info.dtype.is_floating_point and not (ours and info.packed is not None):
            counts[info.dtype] = counts.get(info.dtype, 0) + info.count
    if not counts:
        path = source.weights.path
        raise CheckpointError(path, "no floating-point weights", "quantized integers are not supported")
    most = max(counts, key=lambda dtype: counts[dtype])
    if most in PLAIN_TYPES:
        return most
    return torch.float32 if most == torch.float64 else torch.float16


def require_device(argument: str, device: torch.device | str | None) -> None:
    """Passes `None` and the devices of this machine. Errors: `InvalidInput`."""
    if isinstance(device, str):
        require_device_name(argument, device)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as err:  # what torch raises for unknown names and absent devices
        found = ", ".join(["cpu", *(name for name in ("cuda", "mps") if _is_there(name))])
        kind = torch.device(device).type if device is not None else ""
        missing = f"there is no {kind} device, or this PyTorch was built without support for it"
        problem = missing if kind in ("cuda", "mps", "xpu") and not _is_there(kind) else str(err).splitlines()[0]
        raise InvalidInput(argument, repr(str(device)), f"a device of this machine: {found}", problem) from err


def _is_there(device: str) -> bool:
    return (device == "mps" and torch.backends.mps.is_available()) or (device == "cuda" and torch.cuda.is_available())


def require_dtype(argument: str, dtype: torch.dtype | None) -> None:
    """Passes `None` and the types that networks compute in. Errors: `InvalidInput`."""
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize > 1):
        return
    remedy = "use torch.float32, torch.bfloat16 or torch.float16"
    raise InvalidInput(argument, repr(dtype), "a floating-point type", remedy)
