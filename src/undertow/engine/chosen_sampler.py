"""Which sampler draws a request, along which levels, and where it starts: as asked, or as the model's folder says."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from undertow.diffusion.grids import sigma_grid
from undertow.diffusion.paths import Path, path_name
from undertow.diffusion.schedules import NoiseSchedule, Schedule
from undertow.engine.named_sampler import (
    DEFAULT_SAMPLER,
    KnownLevels,
    NamedSampler,
    named_sampler,
    require_sampled,
)
from undertow.engine.request import MODEL_SAMPLER, GenerationRequest
from undertow.known_names import StartNoise, TimestepMap
from undertow.sampling.model_levels import model_levels
from undertow.schedulers.levels import COMFYUI_ZERO_SNR_ALPHA_CUMPROD
from undertow.schedulers.model_sampler import ModelSampler


@dataclass(frozen=True, kw_only=True, eq=False)
class ChosenSampler:
    """name: ours. options: for the sampler. schedule: the grid's name, for people. grid: its levels for a number of
    steps. levels: the model's, of this request. start: the size of pure noise; `None` for ComfyUI's, sigma's below the
    highest level. scaled_end: what is left at a last level above 0 is in DDPM's variable, as diffusers' schedulers
    return it. notes: what the request did not say."""

    name: str
    schedule: str
    grid: Callable[[int], list[float]]
    levels: Schedule
    options: Mapping[str, float] = field(default_factory=dict[str, float])
    timestep_map: TimestepMap = "interpolated"
    start: StartNoise | None = "variance"
    scaled_end: bool = False
    notes: tuple[str, ...] = field(default=())

    def noise_at(self, sigma: float) -> StartNoise:
        """The size of pure noise at the first level."""
        if self.start is not None:
            return self.start
        highest = math.isclose(sigma, self.levels.sigma_max, rel_tol=1e-5) or sigma > self.levels.sigma_max
        return "variance" if highest else "sigma"

    def finished(self, latents: Tensor, path: Path, sigma: float) -> Tensor:
        """What the sampler returned, which it left at `sigma`."""
        if sigma == 0 or not self.scaled_end:
            return latents
        return latents * path.input_scale(torch.tensor([sigma], dtype=torch.float64)).item()


def choose_sampler(
    request: GenerationRequest, schedule: Schedule, own: ModelSampler | str | None = None
) -> ChosenSampler:
    """The sampler of a request. schedule: the model's levels. own: the sampler that its folder names, or why it is not
    known. Errors: `InvalidInput` for an unknown sampler, or one that does not suit the model."""
    levels, named = levels_for(request, schedule), named_sampler(request, own)
    require_sampled(request, named, known_levels(levels))
    if named.own is not None:
        return _as_the_folder_says(request, levels, named.own)
    chosen = _along_a_grid(request, levels, named)
    if named.follows and isinstance(own, ModelSampler):
        return replace(chosen, options={**own.options, **chosen.options})
    if request.sampler == MODEL_SAMPLER and own is not None:
        return replace(chosen, notes=(f"sampler {DEFAULT_SAMPLER}: the model's own is not known here, {own}",))
    return chosen


def _as_the_folder_says(request: GenerationRequest, levels: Schedule, own: ModelSampler) -> ChosenSampler:
    return ChosenSampler(
        name=own.sampler,
        options={**own.options_for(len(levels), request.steps), **request.sampler_options},
        schedule=own.grid,
        grid=partial(model_levels, own, levels),
        levels=levels,
        timestep_map="nearest" if request.timestep_map == "nearest" else own.timestep_map,
        start=None if request.noise_convention == "comfy" else own.start,
        scaled_end=True,
        notes=(f"sampler {own.describe()}, as the model's folder says",),
    )


def _along_a_grid(request: GenerationRequest, levels: Schedule, named: NamedSampler) -> ChosenSampler:
    def grid(steps: int) -> list[float]:
        if request.sigmas is None:
            return sigma_grid(named.schedule, levels, steps, discard_penultimate=named.discards)
        return list(request.sigmas)

    return ChosenSampler(
        name=named.name,
        options=request.sampler_options,
        schedule=named.schedule,
        grid=grid,
        levels=levels,
        timestep_map=request.timestep_map,
        start=None if request.noise_convention == "comfy" else "variance",
    )


def known_levels(levels: Schedule) -> KnownLevels:
    """What decides about a request, of a model's levels."""
    return KnownLevels(path=path_name(levels.path), trained=len(levels), highest=levels.sigma_max)


def levels_for(request: GenerationRequest, schedule: Schedule) -> Schedule:
    """The model's, with another stand-in for zero terminal SNR where the request asks for ComfyUI's."""
    if request.noise_convention == "comfy" and isinstance(schedule, NoiseSchedule):
        return replace(schedule, last_alpha_cumprod=COMFYUI_ZERO_SNR_ALPHA_CUMPROD)
    return schedule
