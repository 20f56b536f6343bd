"""The parts of a request that have parts themselves: regions, a second pass, overlapping views."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt

from undertow.adapters.adapter import Adapter, as_adapters
from undertow.errors import InvalidInput
from undertow.limits import LARGEST_SCALE
from undertow.prompt_text import require_prompt
from undertow.records import Finite, Record, read_by, require_fields
from undertow.step_counts import computed_steps

Share = Annotated[float, Ge(0), Le(1)]
"""A part of a whole, from 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Region(Record):
    """A prompt for part of the picture. Errors: `InvalidInput`, also for an empty box."""

    argument_prefix: ClassVar[str] = "region."

    prompt: str
    """What to draw there."""
    box: tuple[float, float, float, float]
    """Left, top, right and bottom as fractions of the picture: (0, 0, 0.5, 1) is the left half."""
    weight: Annotated[Finite, Gt(0), Le(LARGEST_SCALE)] = 1.0
    """Weight relative to other regions and to the request's own prompt where they overlap."""
    adapters: Annotated[tuple[Adapter, ...], read_by(as_adapters)] = ()
    """Adapters that act in this region, in addition to the request's own."""

    def __post_init__(self) -> None:
        require_prompt("region.prompt", self.prompt)
        left, top, right, bottom = self.box
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise InvalidInput(
                "region.box",
                self.box,
                "left < right and top < bottom, all from 0 to 1",
                "(0, 0, 0.5, 1) is the left half",
            )
        require_fields(self)


@dataclass(frozen=True, kw_only=True)
class HighResolution(Record):
    """A second pass over an enlarged picture (A1111's "hires fix"). Errors: `InvalidInput`."""

    argument_prefix: ClassVar[str] = "high_resolution."

    scale: Annotated[Finite, Gt(1)] = 2.0
    """How many times larger both sides of the picture become in a second pass."""
    strength: Share = 0.6
    """How much the second pass may change, from 0 to 1."""
    steps: Annotated[int, Ge(1)] | None = None
    """Sampling steps of the second pass's grid; the request's own when `None`."""
    upscale: Literal["latent", "pixels"] = "pixels"
    """How the picture is enlarged: "latent" resizes latents bilinearly; "pixels" decodes, resizes by Lanczos and
    encodes again."""

    def __post_init__(self) -> None:
        require_fields(self)


@dataclass(frozen=True, kw_only=True)
class StepForecast(Record):
    """Steps whose estimate is forecast from those of earlier ones, instead of being computed (Spectrum,
    arXiv:2603.01623): fewer evaluations, and another picture. Errors: `InvalidInput`."""

    argument_prefix: ClassVar[str] = "forecast_steps."

    every: Annotated[int, Ge(2)] = 2
    """Computes one step of so many, and forecasts the others."""
    first: Annotated[int, Ge(2)] = 4
    """Steps at the start that are all computed."""
    last: Share = 0.1
    """Share of the steps at the end that are all computed."""

    def __post_init__(self) -> None:
        require_fields(self)

    def computed(self, steps: int) -> list[bool]:
        """For each step of a pass, whether it is computed."""
        return computed_steps(steps, every=self.every, first=self.first, last=self.last)


@dataclass(frozen=True, kw_only=True)
class Views(Record):
    """Diffusion beyond the training size: the network sees overlapping windows, whose estimates are averaged at every
    step (MultiDiffusion, arXiv:2302.08113, eq. 5). Errors: `InvalidInput`."""

    argument_prefix: ClassVar[str] = "views."

    window: Annotated[int, Ge(1)] | None = None
    """Side of a window in pixels; the model's own size when `None`."""
    overlap: Annotated[float, Ge(0), Lt(1)] = 0.5
    """Share of a window that neighboring windows have in common."""

    def __post_init__(self) -> None:
        require_fields(self)
