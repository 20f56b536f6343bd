"""The noise schedule that the model in a single file was trained with."""

import torch
from torch import Tensor

from undertow.checkpoints.files.weights import Weights
from undertow.checkpoints.identify.file_levels import TABLE, levels_of_file
from undertow.checkpoints.identify.identification import Identification
from undertow.checkpoints.keymap.contents import Contents
from undertow.diffusion.schedules import NoiseSchedule
from undertow.schedulers.betas import TabledBetas
from undertow.schedulers.levels import DiscreteLevels

SAME = 2e-3
"""Largest relative difference to Stable Diffusion's table that rounding to float16 explains."""


def schedule_of(weights: Weights, contents: Contents, identification: Identification) -> NoiseSchedule:
    """Stable Diffusion's schedule, with zero terminal SNR if the file says so, or the table stored in the file."""
    found = levels_of_file(weights, contents, zero_terminal_snr=identification.zero_terminal_snr.value)
    if isinstance(found, DiscreteLevels):
        return NoiseSchedule(betas=found.betas, steps=found.steps, zero_terminal_snr=found.zero_terminal_snr)
    usual = NoiseSchedule.scaled_linear()
    carried = weights.read(contents.names[TABLE]).to(torch.float64)
    return usual if _is_same(carried, usual.alphas_cumprod) else _tabled(carried, usual)


def _is_same(carried: Tensor, usual: Tensor) -> bool:
    return bool(((carried - usual).abs() <= SAME * usual).all())


def _tabled(carried: Tensor, usual: NoiseSchedule) -> NoiseSchedule:
    """The schedule of a stored table, or the usual one when the table is invalid (merging models can spoil it)."""
    before = torch.cat((torch.ones(1, dtype=torch.float64), carried[:-1]))
    betas = 1 - carried / before
    if not bool(((betas > 0) & (betas < 1)).all()):
        return usual
    return NoiseSchedule(betas=TabledBetas(tuple(betas.tolist())), steps=len(carried))
