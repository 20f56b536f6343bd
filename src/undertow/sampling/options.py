"""The numbers a sampler may be tuned with: their names, defaults and ranges."""

import math
from dataclasses import dataclass

from undertow.errors import InvalidInput


@dataclass(frozen=True, kw_only=True)
class Option:
    """A number that a sampler accepts by name. low and high belong to the range; whole: no fractions."""

    default: float
    low: float = 0.0
    high: float = math.inf
    whole: bool = False

    def require(self, name: str, value: float, sampler: str) -> None:
        """Refuse a value out of range. Errors: `InvalidInput`."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not self._fits(value):
            raise InvalidInput(name, value, f"{self.describe()}, for {sampler}")

    def describe(self) -> str:
        """The range in words."""
        kind = "whole" if self.whole else "finite"
        if math.isinf(self.high):
            return f"a {kind} number, at least {self.low:g}"
        return f"a {kind} number from {self.low:g} to {self.high:g}"

    def _fits(self, value: float) -> bool:
        return math.isfinite(value) and self.low <= value <= self.high and (not self.whole or value == int(value))


MEANINGS = {
    "eta": "share of fresh noise: 0 draws none, 1 is the full stochastic differential equation",
    "s_noise": "scale of the fresh noise",
    "s_churn": "noise added before a step, in total over the run (arXiv:2206.00364, algorithm 2)",
    "s_tmin": "lowest sigma at which noise is added",
    "s_tmax": "highest sigma at which noise is added",
    "order": "order of the method",
    "gamma": "share of a step that is noise again",
    "ge_gamma": "how far the direction is extrapolated; 1 does not",
    "r": "where in a step the second evaluation is, in log sigma",
    "rtol": "allowed error relative to x",
    "atol": "allowed absolute error",
    "h_init": "first step, in log sigma",
    "pcoeff": "proportional part of the step controller",
    "icoeff": "integral part of the step controller",
    "dcoeff": "differential part of the step controller",
    "accept_safety": "a step is repeated when the controller would shrink it below this",
    "restart_min": "where a restart begins: the level of the grid nearest to this sigma",
    "restart_max": "how far up a restart goes: the level of the grid nearest to this sigma",
    "predictor_order": "order of the predictor",
    "corrector_order": "order of the corrector; 0 has none",
}
