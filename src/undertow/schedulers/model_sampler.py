"""The sampler that a model's folder names: the algorithm, the timesteps it visits, where it starts and where it ends.
`sampling.model_levels` gives the levels. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from undertow.known_names import StartNoise, TimestepMap

if TYPE_CHECKING:
    from undertow.schedulers.spacing import Times

Spacing = Literal["leading", "trailing", "linspace", "distilled"]
"""How diffusers spaces the timesteps that are visited (`schedulers.spacing`); LCM and TCD pick from distilled ones."""

SPACINGS = ("leading", "trailing", "linspace")
"""Those that a file may say."""

Counting = Literal["fractions", "rounded", "one_more"]
"""How "leading" and "linspace" are counted (`schedulers.spacing`)."""


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

    def options_for(self, trained: int, steps: int) -> Mapping[str, float]:
        """Options of the sampler, for that many steps. trained: timesteps of the network."""
        meets = self.spacing == "leading" or (self.spacing == "trailing" and trained % steps == 0)
        if not self.stride or meets:
            return self.options
        return {**self.options, "stride": trained // steps}

    def count(self, trained: int | None, steps: int) -> int | None:
        """The steps that its levels have where `steps` are asked for; `None` where nobody knows without them. trained:
        timesteps of the network, where that is known. Errors: those of `timesteps`."""
        if not self.sigma_min:
            return steps
        if trained is None or self.curve is not None:
            return None
        # A step from the first trained level to itself changes nothing.
        return int((self.timesteps(trained, steps) > 0).sum())

    @property
    def grid(self) -> str:
        """Our name for its levels, or diffusers' word where there is none."""
        return self.curve or self.spacing

    def describe(self) -> str:
        """For people: the sampler, its levels and where that is said."""
        end = ", ending at the first trained level" if self.sigma_min else ""
        return f"{self.sampler} on {self.grid} levels{end} ({self.scheduler})"

    def timesteps(self, trained: int, steps: int) -> "Times":
        """Those of `steps` steps from the noisiest. trained: timesteps of the network. Errors: `InvalidInput` for a
        number of steps that diffusers refuses too."""
        from undertow.schedulers.spacing import distilled_timesteps, spaced_timesteps  # noqa: PLC0415  numpy, not for plans

        if self.spacing == "distilled":
            return distilled_timesteps(self.original_steps, trained, steps)
        return spaced_timesteps(self.spacing, self.counting, trained, steps, self.offset)
