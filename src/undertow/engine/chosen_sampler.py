"""Which sampler draws a request, along which levels, and where it starts: as asked, or as the model's folder says."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from undertow.checkpoints.read.model import LoadedModel
from undertow.diffusion.grids import require_grid, sigma_grid
from undertow.diffusion.paths import Path, StartNoise
from undertow.diffusion.schedules import TimestepMap
from undertow.engine.request import MODEL_SAMPLER, GenerationRequest
from undertow.sampling.catalogue import find_sampler
from undertow.sampling.model_sampler import ModelSampler
from undertow.sampling.names import read_names

DEFAULT_SAMPLER, DEFAULT_SCHEDULE = "dpmpp_2m", "karras"
"""Where neither the request nor the model names any."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ChosenSampler:
    """name: ours. options: for the sampler. schedule: the grid's name, for people. grid: its levels for a number of
    steps. start: the size of pure noise. scaled_end: what is left at a last level above 0 is in DDPM's variable, as
    diffusers' schedulers return it. notes: what the request did not say."""

    name: str
    schedule: str
    grid: Callable[[int], list[float]]
    options: Mapping[str, float] = field(default_factory=dict[str, float])
    timestep_map: TimestepMap = "interpolated"
    start: StartNoise = "variance"
    scaled_end: bool = False
    notes: tuple[str, ...] = field(default=())

    def finished(self, latents: Tensor, path: Path, sigma: float) -> Tensor:
        """What the sampler returned, which it left at `sigma`."""
        if sigma == 0 or not self.scaled_end:
            return latents
        return latents * path.input_scale(torch.tensor([sigma], dtype=torch.float64)).item()


def choose_sampler(request: GenerationRequest, model: LoadedModel) -> ChosenSampler:
    """The sampler of a request. Errors: `InvalidInput` for an unknown one, or one that does not suit the model."""
    own = model.sampler if request.sampler == MODEL_SAMPLER else None
    if isinstance(own, ModelSampler):
        if request.schedule is None and request.sigmas is None:
            return _as_the_folder_says(request, model, own)
        return _along_a_grid(request, model, own.sampler, request.schedule, own.options_for(model.schedule, 1))
    if request.sampler == MODEL_SAMPLER:
        notes = () if own is None else (f"sampler {DEFAULT_SAMPLER}: the model's own is not known here, {own}",)
        return _along_a_grid(request, model, DEFAULT_SAMPLER, request.schedule, {}, notes)
    return _along_a_grid(request, model, *read_names(request.sampler, request.schedule), {})


def _as_the_folder_says(request: GenerationRequest, model: LoadedModel, own: ModelSampler) -> ChosenSampler:
    find_sampler(own.sampler, model.schedule.path)
    return ChosenSampler(
        name=own.sampler,
        options={**own.options_for(model.schedule, request.steps), **request.sampler_options},
        schedule=own.grid,
        grid=partial(own.sigmas, model.schedule),
        timestep_map="nearest" if request.timestep_map == "nearest" else own.timestep_map,
        start=own.start,
        scaled_end=True,
        notes=(f"sampler {own.describe()}, as the model's folder says",),
    )


def _along_a_grid(
    request: GenerationRequest,
    model: LoadedModel,
    name: str,
    schedule: str | None,
    options: Mapping[str, float],
    notes: tuple[str, ...] = (),
) -> ChosenSampler:
    entry = find_sampler(name, model.schedule.path)
    schedule = DEFAULT_SCHEDULE if schedule is None else schedule
    discard = entry.discards_penultimate if request.discard_penultimate is None else request.discard_penultimate

    def grid(steps: int) -> list[float]:
        if request.sigmas is None:
            return sigma_grid(schedule, model.schedule, steps, discard_penultimate=discard)
        require_grid(request.sigmas)
        return list(request.sigmas)

    return ChosenSampler(
        name=name,
        options={**options, **request.sampler_options},
        schedule=schedule,
        grid=grid,
        timestep_map=request.timestep_map,
        notes=notes,
    )
