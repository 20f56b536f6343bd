"""Which sampler draws a request, and along which grid, by their names: as asked, or as the model's folder says. What
does not fit the model's levels of noise is refused. Imports no torch, so that it is refused at the door too."""

from collections.abc import Callable
from dataclasses import dataclass

from undertow.engine.request import MODEL_SAMPLER, GenerationRequest
from undertow.errors import InvalidInput
from undertow.known_names import (
    DISCARDING_SAMPLERS,
    PathName,
    find_grid,
    grid_beside,
    require_drawing,
    require_sampler,
    require_sampler_options,
    split_sampler,
)
from undertow.schedulers.model_sampler import ModelSampler
from undertow.step_counts import require_levels, require_on_grid

DEFAULT_SAMPLER, DEFAULT_SCHEDULE = "dpmpp_2m", "karras"
"""Where neither the request nor the model names any."""


@dataclass(frozen=True, kw_only=True)
class KnownLevels:
    """What decides about a request, of the levels of noise of a model. path: that they go along. trained: how many
    there are. highest: as sigma. `None` for what is not known."""

    path: PathName | None = None
    trained: int | None = None
    highest: float | None = None


@dataclass(frozen=True, kw_only=True)
class NamedSampler:
    """name: ours. schedule: our name of the grid. discards: the last level of the grid above 0 is left out. own: of the
    model's folder, where its own timesteps take the place of the grid. follows: the folder says the sampler."""

    name: str
    schedule: str
    discards: bool = False
    own: ModelSampler | None = None
    follows: bool = False

    def require_steps(self, steps: int, levels: KnownLevels, argument: str = "steps") -> None:
        """steps: of the whole grid. argument: which says them. Errors: `InvalidInput` for more than there are levels,
        and for a grid that the model has not."""
        if levels.trained is None:
            return
        if self.own is None:
            require_on_grid(
                self.schedule, steps, levels.trained, levels.path, discards=self.discards, argument=argument
            )
        elif levels.path != "RectifiedFlow":
            _named(argument, lambda own=self.own, trained=levels.trained: own.timesteps(trained, steps))

    def count(self, steps: int, levels: KnownLevels) -> int | None:
        """The steps that its levels have where `steps` are asked for; `None` where nobody knows without them."""
        if self.own is not None:
            return self.own.count(levels.trained, steps) if levels.path != "RectifiedFlow" else steps
        if self.schedule == "beta_comfyui":
            return None
        if self.schedule != "ddim_comfyui":
            return steps
        if levels.trained is None:
            return None
        found = len(range(1, levels.trained, max(1, levels.trained // (steps + self.discards))))
        return found - self.discards


def named_sampler(request: GenerationRequest, own: ModelSampler | str | None) -> NamedSampler:
    """own: the sampler that the model's folder names, or why it is not known. Errors: `InvalidInput` for a name that
    there is not."""
    if request.sampler != MODEL_SAMPLER:
        return _on_a_grid(request, request.sampler)
    if not isinstance(own, ModelSampler):
        return _on_a_grid(request, DEFAULT_SAMPLER)
    if request.schedule is None and request.sigmas is None:
        return NamedSampler(name=own.sampler, schedule=own.grid, own=own, follows=True)
    return _on_a_grid(request, own.sampler, follows=True)


def require_sampled(request: GenerationRequest, named: NamedSampler, levels: KnownLevels) -> None:
    """Errors: `InvalidInput` for a sampler that does not run on the model, for options that it lacks, and for noise
    that the model was not trained on."""
    require_drawing(named.name, levels.path)
    require_sampler_options(named.name, request.sampler_options)
    if request.sigmas is not None and levels.highest is not None:
        require_levels(request.sigmas, levels.highest, levels.path)


def _on_a_grid(request: GenerationRequest, sampler: str, *, follows: bool = False) -> NamedSampler:
    name, ending = split_sampler(sampler)
    name = require_sampler(name)
    schedule = grid_beside(name, ending, request.schedule)
    discards = name in DISCARDING_SAMPLERS if request.discard_penultimate is None else request.discard_penultimate
    return NamedSampler(
        name=name,
        schedule=DEFAULT_SCHEDULE if schedule is None else find_grid(schedule),
        discards=discards,
        follows=follows,
    )


def _named(argument: str, check: Callable[[], object]) -> None:
    """Errors: those of a check of "steps", by the name of the argument that says them."""
    try:
        check()
    except InvalidInput as err:
        raise InvalidInput(argument, err.value, err.expected, err.remedy) from err
