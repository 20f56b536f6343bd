"""Measures single operations on this machine: what `undertow plan --measure` does."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import cycle
from tempfile import NamedTemporaryFile

import torch
import torch.nn.functional as F
from torch import Tensor

from undertow.attention.choose import KERNELS
from undertow.memory.forecast import forecast
from undertow.memory.seconds import OVERHEAD, READ, Signature
from undertow.memory.work import Subject, Work
from undertow.nn.matmul import convolve, linear
from undertow.unet.conditioning import Conditioning
from undertow.unet.config import CrossAttention, Level, UNetConfig
from undertow.unet.unet import UNet

LEAST_SECONDS = 0.02
"""Calls are repeated for at least as long, so that the clock and other programs do not show."""

FEWEST, MOST = 3, 200
SMALLEST = UNetConfig(
    levels=(Level(channels=32, attention=CrossAttention(heads=1)), Level(channels=32)), context_dim=32, sample_size=4
)
READ_MEGABYTES = 64
CACHE_BYTES, MOST_COPIES = 64 * 2**20, 256

Numbers = Callable[..., Tensor]
"""Makes a tensor of this shape."""


def _halves(numbers: Numbers, count: int) -> tuple[Tensor, Tensor]:
    """Two halves of the same rows, as a gated layer has them."""
    width = next(width for width in (1280, 320, 64, 16, 1) if count % width == 0)
    hidden, gate = numbers(count // width, 2 * width).chunk(2, dim=-1)
    return hidden, gate


POINTWISE: Mapping[str, Callable[[Numbers, int], Callable[[], object]]] = {
    "add": lambda numbers, count: partial(torch.add, numbers(count), numbers(count)),
    "mul": lambda numbers, count: partial(torch.mul, (gated := _halves(numbers, count))[0], gated[1].clone()),
    "silu": lambda numbers, count: partial(F.silu, numbers(count)),
    "gelu": lambda numbers, count: partial(F.gelu, _halves(numbers, count)[1]),
    "sigmoid": lambda numbers, count: partial(torch.sigmoid, numbers(count)),
    "where": lambda numbers, count: partial(torch.where, numbers(count) > 0, numbers(count), 0.0),
    "cat": lambda numbers, count: partial(torch.cat, numbers(count).tensor_split(2)),
    "interpolate": lambda numbers, count: partial(numbers(-(-count // 4)).repeat_interleave, 4),
}
"""What is computed number by number, by the name that a forecast has for it."""


@torch.no_grad()
def measure(
    signatures: Iterable[Signature],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    *,
    measured: Callable[[Signature], None] = lambda _: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Signature, float]:
    """Seconds of one call of each. measured: called after each. clock: what counts them. Errors: `torch`'s own, where
    memory runs out."""
    found: dict[Signature, float] = {}
    place = torch.device(device)
    for signature in signatures:
        if signature == OVERHEAD:
            found[signature] = _overhead(dtype, place, clock)
        elif signature == READ:
            found[signature] = _read(place, clock)
        else:
            found[signature] = _seconds(_call(signature, dtype, place), place, clock)
        measured(signature)
    return found


def _overhead(dtype: torch.dtype, device: torch.device, clock: Callable[[], float]) -> float:
    """What a network takes for each operation beside the operation itself: Python and its modules. It is what the
    smallest U-Net takes beyond its operations."""
    with torch.device(device):
        unet = UNet(SMALLEST).to(dtype).eval()
        latents, context = torch.zeros(1, 4, 4, 4, dtype=dtype), torch.zeros(1, 8, 32, dtype=dtype)
    conditioning, timesteps = Conditioning(context=context), torch.ones(1, device=device)
    whole = _seconds(lambda: unet(latents, timesteps, conditioning), device, clock)
    name = str(dtype).removeprefix("torch.")
    work = Work(size=(4, 4), branches=1, tokens=8, dtype=name)
    operations = forecast(Subject(name="smallest", unet=SMALLEST), work).stage("denoise").operations
    alone = sum(count * _seconds(_call(one, dtype, device), device, clock) for one, count in operations.items())
    return max(0.0, whole - alone) / sum(operations.values())


def _read(device: torch.device, clock: Callable[[], float]) -> float:
    """A megabyte of a mapped file, copied to where the networks are."""
    with NamedTemporaryFile() as file:
        file.write(bytes(READ_MEGABYTES * 10**6))
        file.flush()
        size = READ_MEGABYTES * 10**6

        def read() -> Tensor:
            return torch.from_file(file.name, size=size, dtype=torch.uint8).to(device, copy=True)

        return _seconds(read, device, clock) / READ_MEGABYTES


def _seconds(call: Callable[[], object], device: torch.device, clock: Callable[[], float]) -> float:
    """The median of calls after a first one, which may prepare what the others only use."""
    call()
    taken: list[float] = []
    while len(taken) < FEWEST or (sum(taken) < LEAST_SECONDS and len(taken) < MOST):
        _wait(device)
        start = clock()
        call()
        _wait(device)
        taken.append(clock() - start)
    return sorted(taken)[len(taken) // 2]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _call(signature: Signature, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    """A call of the kernel that the networks call, with operands of these sizes."""

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float32, device=device).mul(0.1).to(dtype)

    match signature:
        case ("linear", int(cells), int(inputs), int(outputs)):
            x, weights = numbers(cells, inputs), _many(lambda: numbers(outputs, inputs))
            bias = numbers(outputs)
            return lambda: linear(x, next(weights), bias)
        case ("conv", int(rows), int(inputs), int(outputs), int(height), int(width), int(kernel), int(stride)):
            x, bias = _channels_last(numbers(rows, inputs, height, width)), numbers(outputs)
            weights = _many(lambda: _channels_last(numbers(outputs, inputs, kernel, kernel)))
            return lambda: convolve(x, next(weights), bias, stride, kernel // 2)
        case ("attention", str(name), int(rows), int(heads), int(queries), int(keys), int(dim)):
            # Heads are views of one row of numbers for each token, as projections leave them.
            q, k, v = (numbers(rows, tokens, heads, dim).transpose(1, 2) for tokens in (queries, keys, keys))
            return partial(KERNELS[name].kernel, q, k, v, None)
        case ("group_norm", int(rows), int(channels), int(cells), int(groups)):
            x = _channels_last(numbers(rows, channels, cells, 1))
            return partial(F.group_norm, x, groups, numbers(channels), numbers(channels))
        case ("layer_norm", int(cells), int(width)):
            return partial(F.layer_norm, numbers(cells, width), (width,), numbers(width), numbers(width))
        case (str(name), int(count)) if name in POINTWISE:
            return POINTWISE[name](numbers, count)
        case _:
            raise AssertionError(f"an operation without a measurement: {signature}")


def _many(weight: Callable[[], Tensor]) -> Iterator[Tensor]:
    """Equal weights in turn, more than the processor's caches hold: in a network each layer finds its own in memory."""
    first = weight()
    count = min(MOST_COPIES, max(1, CACHE_BYTES // first.nbytes))
    return cycle([first, *(first.clone() for _ in range(count))])


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
