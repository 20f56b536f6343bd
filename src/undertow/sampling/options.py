"""The numbers that a sampler can be tuned with.

They are keyword parameters of the algorithm, annotated with their range and meaning; those that several algorithms
share are named here.
"""

import math
from dataclasses import dataclass
from typing import Annotated

from undertow.errors import InvalidInput
from undertow.known_names import Bounds


@dataclass(frozen=True, kw_only=True)
class NumberRange:
    """What an option does and which numbers it takes. low and high are allowed; whole: integers only."""

    meaning: str
    low: float = 0.0
    high: float = math.inf
    whole: bool = False

    def require(self, name: str, value: float, sampler: str) -> None:
        """Refuses a value out of range. Errors: `InvalidInput`."""
        if value not in self.bounds:
            raise InvalidInput(name, value, f"{self.describe()}, for {sampler}")

    @property
    def bounds(self) -> Bounds:
        """The range alone."""
        return Bounds(self.low, self.high, whole=self.whole)

    def describe(self) -> str:
        """The range in words."""
        return self.bounds.describe()


@dataclass(frozen=True, kw_only=True)
class Option(NumberRange):
    """An option of one algorithm: its range, and the default in the algorithm's signature.

    default: `None` where it is a level of the model's own schedule; its meaning says which.
    """

    default: float | None


Eta = Annotated[
    float,
    NumberRange(meaning="share of fresh noise: 0 draws none, 1 is the full stochastic differential equation"),
]
NoiseScale = Annotated[float, NumberRange(meaning="scale of the fresh noise")]
ChurnAmount = Annotated[
    float,
    NumberRange(meaning="noise added before a step, in total over the run (arXiv:2206.00364, algorithm 2)"),
]
LowestSigma = Annotated[float, NumberRange(meaning="lowest sigma at which noise is added")]
HighestSigma = Annotated[float, NumberRange(meaning="highest sigma at which noise is added")]
MiddlePoint = Annotated[
    float, NumberRange(meaning="where in a step the second evaluation is, in log sigma", low=0.01, high=1.0)
]
