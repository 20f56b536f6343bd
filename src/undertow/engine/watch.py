"""What `--debug` watches while a picture is made: NaN, shapes and time, at named points."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from undertow.engine.debug import Debug
from undertow.engine.rows import Row
from undertow.errors import NonFiniteError


def non_finite(row: Row, prediction: Tensor) -> NonFiniteError:
    """The error for a prediction of NaN or Inf, with where its row comes from."""
    name = f"step_{row.origin.step}_noise_{row.origin.branch}"
    problem = f"{describe(prediction)} ({row.origin})"
    adapted = row.adapters is not None and row.adapters.inputs
    remedy = "look at its adapters and their scales" if adapted else _remedy(name, prediction.dtype)
    return NonFiniteError(name, prediction.dtype, problem, remedy)


@dataclass(kw_only=True)
class Watch:
    """Sees every tensor of a run that has a name, and times every stage.

    The names are those of burn-models' debug log (source document 004): text_context, step_0_noise_uncond,
    step_0_noise_cond, step_0_latents, vae_input, vae_output.
    """

    debug: Debug = field(default_factory=Debug)
    seconds: dict[str, float] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def see(self, name: str, tensor: Tensor) -> None:
        """Notes `tensor` as it passes `name`. Errors: `NonFiniteError` with counts and statistics."""
        if self.debug.shapes:
            self.lines.append(f"{name}: {describe(tensor)}")
        if self.debug.nan:
            low, high = tensor.aminmax()
            if not bool(torch.isfinite(low) & torch.isfinite(high)):
                raise NonFiniteError(name, tensor.dtype, describe(tensor), _remedy(name, tensor.dtype))

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Adds the time spent inside to `seconds[name]`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def add(self, name: str, elapsed: float) -> None:
        """Adds seconds that were measured elsewhere to `seconds[name]`."""
        self.seconds[name] = self.seconds.get(name, 0.0) + elapsed
        if self.debug.timing:
            self.lines.append(f"{name}: {elapsed:.3f} s")


def describe(tensor: Tensor) -> str:
    """Shape, type, counts of NaN and Inf, and min, max, mean and standard deviation of what is finite."""
    values = tensor.detach().float()
    finite = values[torch.isfinite(values)]
    nan, inf = int(values.isnan().sum()), int(values.isinf().sum())
    counts = f"NaN {nan}/{values.numel()}, Inf {inf}/{values.numel()}"
    head = f"shape {list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}, {counts}"
    if finite.numel() == 0:
        return f"{head}, nothing finite"
    return (
        f"{head}, min {finite.min():.4g}, max {finite.max():.4g}, "
        f"mean {finite.mean():.4g}, std {finite.std(correction=0):.4g}"
    )


def _remedy(name: str, dtype: torch.dtype) -> str:
    if dtype != torch.float16:
        return "look at the weights with undertow inspect --validate-weights"
    room = "--vae-precision" if name.startswith("vae") else "--precision"
    return f"float16 may have overflowed: try {room} bf16 or f32"
