"""How strong guidance is, and when: numbers, numbers by step, and intervals. Imports no torch."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from undertow.errors import InvalidInput
from undertow.limits import LARGEST_SCALE

Scale = float | tuple[float, ...] | Callable[[float], float]
"""One number; one for every step; or a function of the step's fraction of the run, 0 at the first step."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """Where a run is. index: of the step in a run of `count`. sigma: of this evaluation, which lies inside the step
    for samplers that evaluate twice."""

    index: int
    count: int
    sigma: float

    @property
    def fraction(self) -> float:
        """0 at the first step; 1 would be the end."""
        return self.index / self.count


def scale_at(scale: Scale, step: Step) -> float:
    """The number that holds at a step. Errors: `InvalidInput` when a function returns one that is not finite."""
    if isinstance(scale, tuple):
        return scale[step.index]
    if not callable(scale):
        return scale
    value = scale(step.fraction)
    require_strength("guidance scale", value)
    return value


def require_scale(name: str, scale: Scale) -> None:
    """Errors: `InvalidInput` for numbers that are not finite, or that no picture comes of, and for an empty
    sequence."""
    if callable(scale):
        return
    values = scale if isinstance(scale, tuple) else (scale,)
    if not values:
        raise InvalidInput(name, "empty", "one number for every step")
    for value in values:
        require_strength(name, value)


def require_strength(name: str, value: float) -> None:
    """Errors: `InvalidInput` for a scale that is not finite, or larger than any that draws."""
    if not math.isfinite(value):
        raise InvalidInput(name, value, "a finite number", "1 turns guidance off")
    if abs(value) > LARGEST_SCALE:
        expected = f"a number from -{LARGEST_SCALE:,} to {LARGEST_SCALE:,}"
        raise InvalidInput(name, value, expected, "1 turns guidance off")


def require_steps(name: str, scale: Scale, count: int) -> None:
    """Errors: `InvalidInput` when a sequence has not one number for each of `count` steps."""
    if isinstance(scale, tuple) and len(scale) != count:
        raise InvalidInput(name, f"{len(scale)} numbers", f"one for each of {count} steps")


def require_range(name: str, value: float, low: float, high: float, remedy: str = "") -> None:
    """Errors: `InvalidInput` for a number outside low..high, or none."""
    if not low <= value <= high:
        raise InvalidInput(name, value, f"a number from {low:g} to {high:g}", remedy)


@dataclass(frozen=True, kw_only=True)
class StepInterval:
    """Steps from int(start count) up to, not including, int(end count): `start` and `end` of diffusers' guiders."""

    start: float = 0.0
    end: float = 1.0

    def __post_init__(self):
        require_range("interval start", self.start, 0, 1, "it is a fraction of the steps")
        require_range("interval end", self.end, 0, 1, "it is a fraction of the steps")
        if self.start >= self.end:
            raise InvalidInput("interval", f"{self.start:g} to {self.end:g}", "a start before the end")

    def holds(self, step: Step) -> bool:
        """Whether a step lies in it."""
        return int(self.start * step.count) <= step.index < int(self.end * step.count)


@dataclass(frozen=True, kw_only=True)
class SigmaInterval:
    """low < sigma <= high, as in the paper on limited intervals (arXiv:2404.07724)."""

    low: float = 0.0
    high: float = math.inf

    def __post_init__(self):
        if not 0 <= self.low < self.high:
            raise InvalidInput("interval", f"sigma {self.low:g} to {self.high:g}", "low below high, both at least 0")

    def holds(self, step: Step) -> bool:
        return self.low < step.sigma <= self.high


Interval = StepInterval | SigmaInterval
