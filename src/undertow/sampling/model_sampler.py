"""The sampler that a model's folder names: the algorithm, the levels it visits, where it starts and where it ends."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from undertow.diffusion.grids import GRIDS, normal
from undertow.diffusion.paths import StartNoise
from undertow.diffusion.schedules import EDMSchedule, FlowSchedule, Schedule, TimestepMap
from undertow.sampling.spacing import Counting, Spacing, distilled_timesteps, spaced_timesteps


@dataclass(frozen=True, kw_only=True)
class ModelSampler:
    """How a folder is drawn with. scheduler: diffusers' class. sampler, options: ours.

    spacing, counting, offset: of the timesteps, see `spacing`; original_steps: of distilled ones. curve: the grid that
    takes their place, between the ends of all trained levels, or of those visited with visited_ends. sigma_min: the
    last level is the first trained one, in place of 0. start: the size of pure noise. timestep_map: of the curve's
    levels. stride: a step goes down trained // steps timesteps, wherever the next evaluation is (DDIMScheduler).
    """

    scheduler: str
    sampler: str
    options: Mapping[str, float] = field(default_factory=dict[str, float])
    spacing: Spacing = "leading"
    counting: Counting = "rounded"
    offset: int = 0
    original_steps: int = 50
    curve: str | None = None
    visited_ends: bool = False
    sigma_min: bool = False
    start: StartNoise = "variance"
    timestep_map: TimestepMap = "interpolated"
    stride: bool = False

    def sigmas(self, schedule: Schedule, steps: int) -> list[float]:
        """The levels of `steps` steps, strictly decreasing. Errors: `InvalidInput` for a number of steps that diffusers
        refuses too."""
        if isinstance(schedule, FlowSchedule):
            return normal(schedule, steps)
        table = schedule.sigmas.numpy()
        levels: list[float] = np.interp(self._timesteps(len(schedule), steps), np.arange(len(table)), table).tolist()
        if self.curve is not None and steps > 1:
            first, last = (levels[0], levels[-1]) if self.visited_ends else (schedule.sigma_max, schedule.sigma_min)
            levels = GRIDS[self.curve](EDMSchedule(sigma_min=last, sigma_max=first), steps)[:-1]
        end = schedule.sigma_min if self.sigma_min else 0.0
        # A step from the first trained level to itself changes nothing.
        return [*(level for level in levels if level > end), end]

    def options_for(self, schedule: Schedule, steps: int) -> Mapping[str, float]:
        """Options of the sampler, for that many steps."""
        meets = self.spacing == "leading" or (self.spacing == "trailing" and len(schedule) % steps == 0)
        if not self.stride or meets:
            return self.options
        return {**self.options, "stride": len(schedule) // steps}

    @property
    def grid(self) -> str:
        """Our name for its levels, or diffusers' word where there is none."""
        return self.curve or self.spacing

    def describe(self) -> str:
        """For people: the sampler, its levels and where that is said."""
        end = ", ending at the first trained level" if self.sigma_min else ""
        return f"{self.sampler} on {self.grid} levels{end} ({self.scheduler})"

    def _timesteps(self, trained: int, steps: int):
        if self.spacing == "distilled":
            return distilled_timesteps(self.original_steps, trained, steps)
        return spaced_timesteps(self.spacing, self.counting, trained, steps, self.offset)
