"""Sampling grids: which sigmas a run visits. Each gives n + 1 decreasing sigmas, the last is 0.

Formulas and peers compared with, and where the same name means another grid:

    normal       ComfyUI normal, A1111 uniform; diffusers' FlowMatchEuler and FlowMatchHeun
    linspace     diffusers linspace of the schedulers that count in sigma: `normal` where its timesteps are integers,
                 but linear in sigma, not in log sigma, between them
    karras       all peers; arXiv:2206.00364, eq. 5
    exponential  k-diffusion, ComfyUI, A1111, diffusers
    sgm_uniform  ComfyUI, Forge (burn-models spaces it in sigma instead, another grid)
    simple       ComfyUI, Forge; diffusers trailing when n divides the number of training timesteps
    ddim         diffusers leading with steps_offset 1; ComfyUI and A1111 when n divides the training timesteps (else
                 they return more steps than were asked for, here it is always n)
    ddim_comfyui the same with ComfyUI's and A1111's number of steps

Others are in `curved_grids` and `tabled_grids`.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from undertow.diffusion.curved_grids import (
    beta,
    beta_comfyui,
    beta_sigma,
    kl_optimal,
    kl_optimal_forge,
    laplace,
    linear_quadratic,
    polyexponential,
    vp,
)
from undertow.diffusion.paths import path_name
from undertow.diffusion.schedules import Schedule
from undertow.diffusion.tabled_grids import ays_sd15, ays_sdxl, gits_sd15, gits_sdxl, turbo
from undertow.errors import InvalidInput
from undertow.known_names import find_grid
from undertow.limits import STEPS
from undertow.step_counts import require_on_grid


def normal(schedule: Schedule, steps: int) -> list[float]:
    """Evenly spaced in timesteps from the last to the first trained one."""
    return _ending_in_zero(schedule.grid_time_to_sigma(_grid_times(schedule, steps)))


def sgm_uniform(schedule: Schedule, steps: int) -> list[float]:
    """As `normal` with one step more, of which the last, almost clean, is left out."""
    return _ending_in_zero(schedule.grid_time_to_sigma(_grid_times(schedule, steps + 1)[:-1]))


def linspace(schedule: Schedule, steps: int) -> list[float]:
    """Evenly spaced in timesteps, with sigma linear between them."""
    table = schedule.sigmas.numpy()
    places = np.linspace(len(table) - 1, 0, steps)
    return _ending_in_zero(torch.from_numpy(np.interp(places, np.arange(len(table)), table)))


def karras(schedule: Schedule, steps: int, *, rho: float = 7.0) -> list[float]:
    """Evenly spaced in sigma^(1/rho) (arXiv:2206.00364, eq. 5)."""
    if not (math.isfinite(rho) and rho > 0):
        raise InvalidInput("rho", rho, "a positive number", "the paper uses 7")
    ends = schedule.sigma_max ** (1 / rho), schedule.sigma_min ** (1 / rho)
    return _ending_in_zero(torch.linspace(*ends, steps, dtype=torch.float64) ** rho)


def exponential(schedule: Schedule, steps: int) -> list[float]:
    """Evenly spaced in log sigma (k-diffusion `get_sigmas_exponential`)."""
    ends = math.log(schedule.sigma_max), math.log(schedule.sigma_min)
    return _ending_in_zero(torch.linspace(*ends, steps, dtype=torch.float64).exp())


def ddim_comfyui(schedule: Schedule, steps: int) -> list[float]:
    """Every (trained // n)-th level, from the second to the end: n steps or more."""
    stride = max(len(schedule) // steps, 1)
    return _ending_in_zero(schedule.sigmas[1::stride].flip(0))


def simple(schedule: Schedule, steps: int) -> list[float]:
    """Every (trained / n)-th level, from the last (ComfyUI `simple_scheduler`)."""
    trained = len(schedule)
    return _ending_in_zero(schedule.sigmas[[trained - 1 - index * trained // steps for index in range(steps)]])


def ddim(schedule: Schedule, steps: int) -> list[float]:
    """Every (trained // n)-th level, from the second (arXiv:2010.02502, appendix D.2, "linear")."""
    trained = len(schedule)
    stride = trained // steps
    first = min(1, trained - 1 - (steps - 1) * stride)  # 0 only when every trained level is asked for
    return _ending_in_zero(schedule.sigmas[[first + index * stride for index in reversed(range(steps))]])


GRIDS: dict[str, Callable[[Schedule, int], list[float]]] = {
    "normal": normal,
    "linspace": linspace,
    "karras": karras,
    "exponential": exponential,
    "sgm_uniform": sgm_uniform,
    "simple": simple,
    "ddim": ddim,
    "ddim_comfyui": ddim_comfyui,
    "polyexponential": polyexponential,
    "vp": vp,
    "beta": beta,
    "beta_comfyui": beta_comfyui,
    "beta_sigma": beta_sigma,
    "kl_optimal": kl_optimal,
    "kl_optimal_forge": kl_optimal_forge,
    "laplace": laplace,
    "linear_quadratic": linear_quadratic,
    "ays_sd15": ays_sd15,
    "ays_sdxl": ays_sdxl,
    "gits_sd15": gits_sd15,
    "gits_sdxl": gits_sdxl,
    "turbo": turbo,
}


def sigma_grid(name: str, schedule: Schedule, steps: int, *, discard_penultimate: bool = False) -> list[float]:
    """The grid called `name` with `steps` steps: n + 1 decreasing sigmas ending in 0.

    name: ours, or another tool's (`GRID_ALIASES`). Grids named for a tool end and count as they do there.
    discard_penultimate: a grid with one step more, without its last level above 0, as ComfyUI and A1111 make it for
    some samplers (`SamplerEntry.discards_penultimate`).

    Errors: `InvalidInput` for an unknown name, fewer than one step, or more steps than the grid has levels.
    """
    found = find_grid(name)
    grid = GRIDS[found]
    if steps < 1:
        raise InvalidInput("steps", steps, "at least 1")
    STEPS.require("steps", steps)
    require_on_grid(found, steps, len(schedule), path_name(schedule.path), discards=discard_penultimate)
    if not discard_penultimate:
        return grid(schedule, steps)
    sigmas = grid(schedule, steps + 1)
    return [*sigmas[:-2], sigmas[-1]]


def _grid_times(schedule: Schedule, count: int) -> Tensor:
    ends = schedule.sigma_to_timestep(torch.tensor([schedule.sigma_max, schedule.sigma_min], dtype=torch.float64))
    return torch.linspace(ends[0].item(), ends[1].item(), count, dtype=torch.float64)


def _ending_in_zero(sigmas: Tensor) -> list[float]:
    return [*sigmas.tolist(), 0.0]
