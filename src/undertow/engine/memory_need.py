"""What a picture needs of memory at the very least, so that one which cannot fit is refused before it is begun.

All numbers are lower bounds: nothing is refused that could be drawn.
"""

from functools import lru_cache
from weakref import WeakKeyDictionary

import torch

from undertow.checkpoints.read.model import LoadedModel
from undertow.engine.picture_size import Size, largest_size
from undertow.engine.request import GenerationRequest
from undertow.engine.sizes import layout_for
from undertow.errors import OutOfMemory
from undertow.free_memory import free_bytes
from undertow.memory.forecast import forecast
from undertow.memory.machine import Machine
from undertow.memory.work import ITEM_BYTES, KernelName, Subject, Work
from undertow.processor import has_bfloat16
from undertow.unet.config import UNetConfig
from undertow.unet.unet import UNet
from undertow.vae.autoencoder import AutoencoderKL
from undertow.vae.plan import plan_tiles, smallest_budget
from undertow.vae.precision import dtype_to_compute_in
from undertow.vae.program import decode_program

WIDEST = 32
"""How many times as long as the other a side may be that anybody draws."""


def require_memory(model: LoadedModel, request: GenerationRequest, *, low_vram: bool) -> None:
    """Errors: `OutOfMemory` for a request whose largest picture cannot fit beside what is in memory; `InvalidInput` for
    its size; `MissingComponent`."""
    unet, vae = model.require_unet(), model.require_vae()
    factor = vae.config.factor
    size = largest_size(request, unet.config.sample_size, factor)
    cells = (size[0] // factor, size[1] // factor)
    window = layout_for(request, cells, unet.config.sample_size, factor).window
    free = free_bytes(unet.device)
    needed = max(drawing_bytes(unet, window), decoding_bytes(vae, cells, low_vram=low_vram))
    if free is None or needed <= free:
        return
    share = (free / needed) ** 0.5
    height, width = (max(factor, int(length * share) // factor * factor) for length in size)
    raise OutOfMemory(
        f"a picture of {size[1]}x{size[0]}",
        needed_bytes=needed,
        free_bytes=free,
        remedy=f"{_sparing(unet, vae, cells, free)}ask for a smaller picture{_up_to(width, height)}",
    )


def _up_to(width: int, height: int) -> str:
    """What would fit, in the same shape; nothing for a shape that nobody meant."""
    return f", up to about {width}x{height}" if max(width, height) <= WIDEST * min(width, height) else ""


def _sparing(unet: UNet, vae: AutoencoderKL, cells: Size, free: int) -> str:
    """The options with which it would fit after all, as far as can be known, to stand before what else helps."""
    trained = unet.config.sample_size
    part = (min(cells[0], trained), min(cells[1], trained))
    for window, low_vram, option in (
        (cells, True, "decode in parts (low_vram, --low-vram)"),
        (part, False, "draw in overlapping windows (views, --views)"),
        (part, True, "draw in overlapping windows (views, --views) and decode in parts (low_vram, --low-vram)"),
    ):
        if max(drawing_bytes(unet, window), decoding_bytes(vae, cells, low_vram=low_vram)) <= free:
            return f"{option}, or "
    return ""


SURE = 0.98
"""The part of a forecast that is needed in any case: it is at most 1 % above what a processor takes."""


def drawing_bytes(unet: UNet, window: Size) -> int:
    """What one row of one forward holds at its peak, in the leanest way that there is: without adapters, and with a
    kernel that does not hold all scores at once."""
    dtype = str(unet.dtype).removeprefix("torch.")
    if dtype not in ITEM_BYTES:
        numbers = sum(channels * height * width for channels, height, width in unet.config.skip_shapes(*window))
        return numbers * unet.dtype.itemsize
    return _leanest(unet.config, window, dtype, unet.device.type)


@lru_cache(maxsize=64)
def _leanest(config: UNetConfig, window: Size, dtype: str, device: str) -> int:
    subject, machine = Subject(name="U-Net", unet=config), Machine(device=device, bfloat16=has_bfloat16())
    kernels: tuple[KernelName, ...] = ("sdpa", "chunked")
    works = (Work(size=window, branches=1, dtype=dtype, kernel=kernel, feed_forward_chunks=8) for kernel in kernels)
    found = min(forecast(subject, work, machine).stage("denoise").activation_bytes for work in works)
    return int(SURE * found)


def decoding_bytes(vae: AutoencoderKL, cells: Size, *, low_vram: bool) -> int:
    """What decoding one picture holds at its peak, activations alone: as a whole, or with `low_vram` in the smallest
    parts."""
    least, whole = decoding_range(vae, cells)
    return least if low_vram else whole


def decoding_range(vae: AutoencoderKL, cells: Size) -> tuple[int, int]:
    """What decoding one picture holds at its peak, activations alone: in the smallest parts, and as a whole."""
    dtype, known = dtype_to_compute_in(vae).dtype, _RANGES.setdefault(vae, {})
    found = known.get((cells, dtype))
    if found is None:
        if len(known) == SIZES:
            known.clear()
        program = decode_program(vae, cells, dtype)
        found = known[cells, dtype] = smallest_budget(program), plan_tiles(program).peak_bytes
    return found


SIZES = 64
"""Of pictures for which the range is remembered."""

_RANGES: WeakKeyDictionary[AutoencoderKL, dict[tuple[Size, torch.dtype], tuple[int, int]]] = WeakKeyDictionary()
"""Of each VAE; planning tiles takes tens of milliseconds, and is asked for by every request."""
