"""Encoding and decoding with care: row by row, within a memory budget, in a type of their own, watched for overflow.

    decoded = decode_safely(vae, latents_from_model(latent_space, latents), budget_bytes=2**30)
    decoded.pixels, decoded.report

A row's result does not depend on the other rows, and with or without a budget it is the same up to rounding: every
tile uses the statistics of the whole picture and attention sees all of it.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from undertow.errors import InvalidInput
from undertow.processor import IMITATED, computes
from undertow.shapes import Latents
from undertow.vae.autoencoder import AutoencoderKL, Pixels, Posterior
from undertow.vae.checks import check_latents, check_pixels
from undertow.vae.config import VAEConfig
from undertow.vae.execute import HIGHER, Execution, Observe, execute, unobserved
from undertow.vae.program import Program, decode_program, encode_program
from undertow.vae.windows import Size

CLAMP = 65000.0
"""What `--vae-clamp` cuts at: just inside float16's range of 65,504."""


class DTypeChoice(NamedTuple):
    """The type to run an autoencoder in and why."""

    dtype: torch.dtype
    reason: str


@dataclass(frozen=True, kw_only=True)
class VAEReport:
    """What happened. dtype: the type that was computed in; reason: why it is not that of the weights, where it is not.
    retried: for each row that left its range, the first step whose output was not finite, from where on float32 was
    used. clamped: values cut, by step. tiled, peak_bytes
    (activations, predicted) and slowdown (work over that of untiled): of the costliest row's plan."""

    dtype: torch.dtype
    reason: str | None = None
    retried: dict[int, str] = field(default_factory=dict)
    clamped: dict[str, int] = field(default_factory=dict)
    tiled: bool
    peak_bytes: int
    slowdown: float

    def notes(self) -> list[str]:
        """One sentence for everything that a user should know; none when all went as asked."""
        lines = [] if self.reason is None else [f"VAE in {self.dtype}: {self.reason}"]
        lines += [
            f"row {row}: {layer} overflowed in {self.dtype}, continued in {HIGHER}"
            for row, layer in self.retried.items()
        ]
        if self.clamped:
            total, first = sum(self.clamped.values()), next(iter(self.clamped))
            lines.append(f"clamped {total} values in {len(self.clamped)} layers, first in {first}: the picture changed")
        if self.tiled:
            lines.append(f"tiled to fit, about {self.slowdown:.1f} times the work; the picture is the same")
        return lines


@dataclass(frozen=True, kw_only=True)
class Decoded:
    pixels: Pixels
    report: VAEReport


@dataclass(frozen=True, kw_only=True)
class Encoded:
    posterior: Posterior
    report: VAEReport


def decode_safely(
    vae: AutoencoderKL,
    latents: Latents,
    *,
    budget_bytes: int | None = None,
    clamp: float | None = None,
    observe: Observe = unobserved,
) -> Decoded:
    """float32 pictures in about [-1, 1] from unscaled latents of any floating type.

    budget_bytes: activations of one row at a time, the weights not counted; a smaller budget costs time and nothing
    else. clamp: cut what convolutions and blocks give to ±clamp (`CLAMP`), which changes pictures and hides overflow
    (trap T17); only on request, and counted. observe: sees what every convolution, attention and sum gives.
    Errors: `InvalidInput` for unusable latents or a budget that is too small; `NonFiniteError` names the first layer
    that gives NaN or Inf in float32 too.
    """
    check_latents(vae.config, latents)
    result, report = _row_by_row(vae, decode_program, latents, budget_bytes, clamp, observe)
    return Decoded(pixels=result, report=report)


def encode_safely(
    vae: AutoencoderKL, pixels: Pixels, *, budget_bytes: int | None = None, clamp: float | None = None
) -> Encoded:
    """The posterior in float32 of pictures in [-1, 1] whose sides are multiples of the factor; otherwise like
    `decode_safely`."""
    check_pixels(vae.config, pixels)
    result, report = _row_by_row(vae, encode_program, pixels, budget_bytes, clamp)
    return Encoded(posterior=Posterior.from_moments(result), report=report)


def choose_dtype(config: VAEConfig, wanted: torch.dtype, device: torch.device | str) -> DTypeChoice:
    """The type for an autoencoder whose U-Net runs in `wanted`.

    float16 is left where it would overflow (trap T16), and any type where the device only imitates it; bfloat16 keeps
    the range, and 8 bits of mantissa show as banding no stronger than 8-bit pictures have.
    """
    if wanted == torch.float16 and config.force_upcast:
        return DTypeChoice(HIGHER, "these weights' activations leave float16's range (force_upcast)")
    if not computes(wanted, device):
        return DTypeChoice(HIGHER, IMITATED[wanted])
    if wanted != torch.float16:
        return DTypeChoice(wanted, "as the U-Net")
    return DTypeChoice(torch.float16, "as the U-Net; what overflows is retried in float32")


def dtype_to_compute_in(vae: AutoencoderKL) -> DTypeChoice:
    """The type that `decode_safely` and `encode_safely` start in: that of the weights, unless it is bfloat16 and the
    device imitates that. float16 is kept: whoever has it here wants to see what overflows."""
    if vae.dtype == torch.bfloat16 and not computes(vae.dtype, vae.device):
        return DTypeChoice(HIGHER, IMITATED[vae.dtype])
    return DTypeChoice(vae.dtype, "as the weights")


def _row_by_row(
    vae: AutoencoderKL,
    program_for: Callable[[AutoencoderKL, Size, torch.dtype], Program],
    inputs: Float[Tensor, "batch channels height width"],
    budget_bytes: int | None,
    clamp: float | None,
    observe: Observe = unobserved,
) -> tuple[Float[Tensor, "batch outputs new_height new_width"], VAEReport]:
    if clamp is not None and not clamp > 0:
        raise InvalidInput(
            "clamp", clamp, "a positive number or None", f"{CLAMP:g} keeps values inside float16's range"
        )
    choice = dtype_to_compute_in(vae)
    program = program_for(vae, (inputs.shape[2], inputs.shape[3]), choice.dtype)
    results: list[Tensor] = []
    runs: list[Execution] = []
    for row in inputs.to(device=vae.device, dtype=choice.dtype).split(1):
        run = execute(program, row, budget_bytes=budget_bytes, clamp=clamp, observe=observe)
        results.append(run.result.float())
        runs.append(run)
    return torch.cat(results).contiguous(), _report(choice, runs, changed=choice.dtype != vae.dtype)


def _report(choice: DTypeChoice, runs: list[Execution], *, changed: bool) -> VAEReport:
    clamped: Counter[str] = sum((run.clamped for run in runs), Counter())
    return VAEReport(
        dtype=choice.dtype,
        reason=choice.reason if changed else None,
        retried={row: run.first_non_finite for row, run in enumerate(runs) if run.first_non_finite is not None},
        clamped=dict(clamped),
        tiled=any(run.plan.is_tiled for run in runs),
        peak_bytes=max(run.plan.peak_bytes for run in runs),
        slowdown=max(run.plan.slowdown for run in runs),
    )
