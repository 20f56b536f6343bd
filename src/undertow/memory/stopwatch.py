"""Measures single operations on this machine: what `undertow plan --measure` does."""

import time
from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from undertow.attention.choose import KERNELS
from undertow.memory.seconds import Signature
from undertow.nn.matmul import convolve, linear

LEAST_SECONDS = 0.02
"""Calls are repeated for at least as long, so that the clock and other programs do not show."""

FEWEST, MOST = 3, 200
CHANNELS, GROUPS = 320, 32


@torch.no_grad()
def measure(
    signatures: Iterable[Signature],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    *,
    measured: Callable[[Signature], None] = lambda _: None,
) -> dict[Signature, float]:
    """Seconds of one call of each. measured: called after each. Errors: `torch`'s own, where memory runs out."""
    found: dict[Signature, float] = {}
    for signature in signatures:
        found[signature] = _seconds(_call(signature, dtype, torch.device(device)), torch.device(device))
        measured(signature)
    return found


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """The median of calls after a first one, which may prepare what the others only use."""
    call()
    taken: list[float] = []
    while len(taken) < FEWEST or (sum(taken) < LEAST_SECONDS and len(taken) < MOST):
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        taken.append(time.perf_counter() - start)
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
            return partial(linear, numbers(cells, inputs), numbers(outputs, inputs), numbers(outputs))
        case ("conv", int(rows), int(inputs), int(outputs), int(height), int(width), int(kernel), int(stride)):
            x, weight = numbers(rows, inputs, height, width), numbers(outputs, inputs, kernel, kernel)
            x, weight = (one.contiguous(memory_format=torch.channels_last) for one in (x, weight))
            return partial(convolve, x, weight, numbers(outputs), stride, kernel // 2)
        case ("attention", str(name), int(rows), int(heads), int(queries), int(keys), int(dim)):
            # Heads are views of one row of numbers for each token, as projections leave them.
            q, k, v = (numbers(rows, tokens, heads, dim).transpose(1, 2) for tokens in (queries, keys, keys))
            return partial(KERNELS[name].kernel, q, k, v, None)
        case ("norm", int(count)):
            channels = CHANNELS if count % CHANNELS == 0 else GROUPS if count % GROUPS == 0 else 1
            x = numbers(1, channels, count // channels, 1).contiguous(memory_format=torch.channels_last)
            return partial(F.group_norm, x, min(GROUPS, channels))
        case ("elementwise", int(count)):
            return partial(torch.add, numbers(count), numbers(count))
        case _:
            raise AssertionError(f"an operation without a measurement: {signature}")
