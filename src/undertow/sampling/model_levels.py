"""The levels of noise that a model's folder is drawn along, as its scheduler in diffusers visits them."""

import numpy as np

from undertow.diffusion.grids import GRIDS, normal
from undertow.diffusion.schedules import EDMSchedule, FlowSchedule, Schedule
from undertow.schedulers.model_sampler import ModelSampler


def model_levels(own: ModelSampler, schedule: Schedule, steps: int) -> list[float]:
    """The levels of `steps` steps, strictly decreasing. Errors: `InvalidInput` for a number of steps that diffusers
    refuses too."""
    if isinstance(schedule, FlowSchedule):
        return normal(schedule, steps)
    table = schedule.sigmas.numpy()
    levels: list[float] = np.interp(own.timesteps(len(schedule), steps), np.arange(len(table)), table).tolist()
    if own.curve is not None and steps > 1:
        first, last = (levels[0], levels[-1]) if own.visited_ends else (schedule.sigma_max, schedule.sigma_min)
        levels = GRIDS[own.curve](EDMSchedule(sigma_min=last, sigma_max=first), steps)[:-1]
    end = schedule.sigma_min if own.sigma_min else 0.0
    # A step from the first trained level to itself changes nothing.
    return [*(level for level in levels if level > end), end]
