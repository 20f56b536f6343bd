"""Grids found by optimization, as their authors' tables for Stable Diffusion, interpolated in log sigma.

    ays_sd15, ays_sdxl      Align Your Steps, arXiv:2404.14507, the eleven levels of its page; A1111 and Forge
                            align_your_steps, diffusers' AysSchedules (there as timesteps); ComfyUI's node puts
                            0 in the place of the last level: discard_penultimate
    gits_sd15, gits_sdxl    GITS, arXiv:2405.11326; Forge align_your_steps_GITS
    turbo                   trained levels 1000, 750, 500, ...: SD-Turbo; A1111 and Forge turbo, ComfyUI's SDTurbo node

A table counts its last level as a step of n, as in A1111 and Forge.
"""

from collections.abc import Sequence

import numpy as np
import torch

from undertow.diffusion.schedules import Schedule

AYS_SD15 = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
AYS_SDXL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)
GITS_SD15 = (14.615, 4.617, 2.507, 1.236, 0.702, 0.402, 0.240, 0.156, 0.104, 0.094, 0.029)
GITS_SDXL = (14.615, 4.734, 2.567, 1.529, 0.987, 0.652, 0.418, 0.268, 0.179, 0.127, 0.029)


def ays_sd15(schedule: Schedule, steps: int) -> list[float]:
    """Align Your Steps for Stable Diffusion 1."""
    return _interpolated(AYS_SD15, schedule, steps)


def ays_sdxl(schedule: Schedule, steps: int) -> list[float]:
    """Align Your Steps for Stable Diffusion XL."""
    return _interpolated(AYS_SDXL, schedule, steps)


def gits_sd15(schedule: Schedule, steps: int) -> list[float]:
    """GITS for Stable Diffusion 1."""
    return _interpolated(GITS_SD15, schedule, steps)


def gits_sdxl(schedule: Schedule, steps: int) -> list[float]:
    """GITS for Stable Diffusion XL."""
    return _interpolated(GITS_SDXL, schedule, steps)


def turbo(schedule: Schedule, steps: int) -> list[float]:
    """Every (trained / n)-th level counted from the last, rounded; diffusers' trailing spacing."""
    trained = len(schedule)
    places = [round(index * trained / steps) - 1 for index in range(steps, 0, -1)]
    return [*schedule.sigmas[places].tolist(), 0.0]


def _interpolated(table: Sequence[float], schedule: Schedule, steps: int) -> list[float]:
    """The table at `steps` even places in log sigma, within the trained levels."""
    places = np.linspace(0, len(table) - 1, steps)
    logs = np.interp(places, np.arange(len(table)), np.log(table))
    levels = np.exp(logs).clip(schedule.sigma_min, schedule.sigma_max)
    return [*torch.from_numpy(levels).tolist(), 0.0]
