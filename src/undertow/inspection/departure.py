"""What a comparison of two runs found, as records and as sentences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from undertow.errors import InvalidInput
from undertow.inspection.departure_tape import OwnError
from undertow.lookup import counted

TEXT, PICTURE = "text", "picture"
"""Stages beside the steps."""

SAME_WAY = 8
"""Roundings (the type's epsilon) that two modules may differ by which compute in the same way. On one machine they give
the same bits; convolutions of accelerators are not obliged to."""

OTHER_WAY = 100
"""The same for float32 computed otherwise: sums of thousands of products in another order."""

HALF = 4
"""The same where one of the two computes in half precision: what comes in, the weights and what goes out are rounded,
and a softmax or a norm makes more of it. Healthy pairs need less than one (docs/results/planted-edits.md)."""


def usual_tolerance(dtypes: Sequence[torch.dtype], *, same_way: bool) -> float:
    """The relative error of one module up to which two runs count as equal. same_way: with the same types, kernels and
    code."""
    epsilon = max(torch.finfo(dtype).eps for dtype in dtypes)
    if same_way:
        return SAME_WAY * epsilon
    return epsilon * (HALF if epsilon > torch.finfo(torch.float32).eps else OTHER_WAY)


def require_tolerance(tolerance: float | None, argument: str = "tolerance") -> None:
    """Errors: `InvalidInput` for one that is negative or not finite, under which every pair or none would agree."""
    if tolerance is not None and not 0 <= tolerance < math.inf:
        raise InvalidInput(argument, f"{tolerance:g}", "a finite number from 0", "without it the types decide")


@dataclass(frozen=True, kw_only=True)
class Place:
    """When something was computed: the stage, or else the step and branch of guidance, which count as in `Origin`."""

    stage: str = ""
    step: int = 0
    branch: str = ""
    window: int = 0

    def __str__(self) -> str:
        if self.stage:
            return f"while the {self.stage} is {'encoded' if self.stage == TEXT else 'decoded'}"
        window = f", window {self.window}" if self.window else ""
        return f"step {self.step}, branch {self.branch or 'none'}{window}"


@dataclass(frozen=True, kw_only=True)
class Departure:
    """The first module that departs by itself. own: by how much, given the same. agreed: the largest error of anything
    that was computed before it in this forward or stage. kind: its class."""

    place: Place
    own: OwnError
    agreed: float
    kind: str = ""

    @property
    def module(self) -> str:
        return self.own.module

    def __str__(self) -> str:
        own = self.own
        where = f", in what it gives to {own.before}" if own.before else ""
        kind = f" ({self.kind})" if self.kind else ""
        return (
            f"first departs at {own.module}{kind}, {self.place}, by {_number(own.error)}{where}; "
            f"what it received there agreed {_within(max(self.agreed, own.received))}"
        )


@dataclass(frozen=True, kw_only=True)
class ForwardErrors:
    """One forward of a U-Net, where both networks received A's latents, timestep and conditioning.

    own: the largest error of each module by itself. grown: of each module's output, as errors add up on the way.
    latents, conditioning: how far B's own had departed before A's took their place; the text encoders' modules are
    given what A's received, where they are compared. prediction: of the network as a whole. compiled: how far a
    compiled graph is from the same network computed eagerly, the larger of the two; `None` without one.
    """

    place: Place
    own: Mapping[str, float] = field(repr=False)
    grown: Mapping[str, float] = field(repr=False)
    prediction: float
    latents: float = 0.0
    conditioning: float = 0.0
    compiled: float | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs of one request. a, b: what they are. tolerance: of one module's error. text: own errors of the modules
    of the text encoders. forwards: in their order. picture: relative error of the decoded picture, from the same
    latents within rounding; `None` where it was not compared. free: how far B's estimate of the picture is from A's
    when B draws alone, step by step; empty where it did not. first: `None` where they agree. notes: what could not be
    compared."""

    a: str
    b: str
    tolerance: float
    text: Mapping[str, float] = field(repr=False)
    forwards: tuple[ForwardErrors, ...] = field(repr=False)
    picture: float | None = None
    free: tuple[float, ...] = field(default=(), repr=False)
    first: Departure | None = None
    notes: tuple[str, ...] = ()

    @property
    def agree(self) -> bool:
        return self.first is None

    @property
    def largest(self) -> float:
        """The largest error of any module by itself, and of any network or stage as a whole where only that is seen."""
        seen: list[float] = [*self.text.values(), *(error for one in self.forwards for error in one.own.values())]
        seen += [one.compiled for one in self.forwards if one.compiled is not None]
        seen += [] if self.picture is None else [self.picture]
        return max(seen, default=0.0)

    @property
    def modules(self) -> int:
        """How many were compared."""
        return len({*self.text, *(name for one in self.forwards for name in one.own)})

    def verdict(self) -> str:
        """A sentence."""
        if self.first is not None:
            return f"{self.a} and {self.b} depart: {self.b} {self.first}"
        seen = f"{self.modules} modules, {counted(len(self.forwards), 'forward')}"
        return f"{self.a} and {self.b} agree {_within(self.largest)} ({seen}, tolerance {_number(self.tolerance)})"

    def top(self, count: int) -> list[tuple[str, float, float]]:
        """The modules that depart most by themselves: name, own error, and how far their outputs had departed."""
        own: dict[str, float] = dict(self.text)
        grown: dict[str, float] = {}
        for one in self.forwards:
            for name, error in one.own.items():
                own[name] = max(error, own.get(name, 0.0))
            for name, error in one.grown.items():
                grown[name] = max(error, grown.get(name, 0.0))
        ranked = sorted(own.items(), key=lambda item: -item[1])
        return [(name, error, grown.get(name, 0.0)) for name, error in ranked[:count] if error > 0]

    def to_json(self) -> dict[str, Any]:
        """For scripts: errors that are not finite are `null`."""
        first = None
        if self.first is not None:
            own = self.first.own
            first = {
                "module": own.module,
                "kind": self.first.kind,
                "before": own.before,
                "stage": self.first.place.stage,
                "step": self.first.place.step,
                "branch": self.first.place.branch,
                "window": self.first.place.window,
                "error": finite(own.error),
                "inputs_agreed_within": finite(max(self.first.agreed, own.received)),
            }
        return {
            "a": self.a,
            "b": self.b,
            "agree": self.agree,
            "modules": self.modules,
            "verdict": self.verdict(),
            "tolerance": self.tolerance,
            "largest": finite(self.largest),
            "first": first,
            "picture": None if self.picture is None else finite(self.picture),
            "free": [finite(error) for error in self.free],
            "forwards": [
                {
                    "step": one.place.step,
                    "branch": one.place.branch,
                    "prediction": finite(one.prediction),
                    "compiled": None if one.compiled is None else finite(one.compiled),
                    "conditioning": finite(one.conditioning),
                }
                for one in self.forwards
            ],
            "top": [{"module": name, "own": finite(own), "grown": finite(grown)} for name, own, grown in self.top(20)],
            "notes": list(self.notes),
        }


def finite(error: float) -> float | None:
    """JSON has no infinity."""
    return error if math.isfinite(error) else None


def _within(error: float) -> str:
    return f"within {_number(error)}" if error else "to the bit"


def _number(error: float) -> str:
    return f"{error:.2g}" if math.isfinite(error) else "numbers that are not finite"
