"""The noise schedule that the model in a single file was trained with."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from undertow.checkpoints.files.weights import Weights
from undertow.checkpoints.identify.file_levels import TABLE, levels_of_file
from undertow.checkpoints.identify.identification import Identification
from undertow.checkpoints.keymap.contents import Contents
from undertow.diffusion.schedules import NoiseSchedule
from undertow.schedulers.betas import Betas, CosineBetas, LinearBetas, ScaledLinearBetas, TabledBetas
from undertow.schedulers.levels import CarriedLevels

SAME = 2e-3
"""Largest relative difference to Stable Diffusion's table that rounding to float16 explains."""

EXACT = 1e-6
"""Largest relative difference to any table that rounding to float32 explains."""

DIGITS = 4
"""Of the first and last beta, which float32 leaves in a table."""


def schedule_of(weights: Weights, contents: Contents, identification: Identification) -> NoiseSchedule:
    """Stable Diffusion's schedule, or that of the table stored in the file; with zero terminal SNR if the file says so,
    which its table does not have yet (A1111 rescales it too)."""
    trained = NoiseSchedule.scaled_linear()
    if isinstance(levels_of_file(weights, contents, zero_terminal_snr=False), CarriedLevels):
        trained = _carried(weights.read(contents.names[TABLE]).to(torch.float64), trained)
    return replace(trained, zero_terminal_snr=identification.zero_terminal_snr.value)


def _carried(table: Tensor, usual: NoiseSchedule) -> NoiseSchedule:
    """The schedule of a stored table, by its name where it has one; the usual one when the table is invalid (merging
    models can spoil it)."""
    before = torch.cat((torch.ones(1, dtype=torch.float64), table[:-1]))
    betas = 1 - table / before
    if not bool(((betas > 0) & (betas < 1)).all()):
        return usual
    for named in _named(float(betas[0]), float(betas[-1])):
        schedule = NoiseSchedule(betas=named, steps=len(table))
        if _is_near(table, schedule, EXACT):
            return schedule
    if _is_near(table, usual, SAME):
        return usual
    return NoiseSchedule(betas=TabledBetas(tuple(betas.tolist())), steps=len(table))


def _named(first: float, last: float) -> Iterator[Betas]:
    """What a table with these ends may be."""
    yield CosineBetas()
    start, end = (float(f"{beta:.{DIGITS}g}") for beta in (first, last))
    if start <= end:
        yield ScaledLinearBetas(start=start, end=end)
        yield LinearBetas(start=start, end=end)


def _is_near(table: Tensor, schedule: NoiseSchedule, most: float) -> bool:
    expected = schedule.alphas_cumprod
    return bool(((table - expected).abs() <= most * expected).all())
